"""Every pair of nodes: whether one is much slower than the others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from shoal_ray.doctor.finding import Finding, Tell
from shoal_ray.doctor.nodes import Node

CALL_SEC = 120
FIRST_BYTES, MOST_BYTES = 1 << 20, 64 << 20
LATENCY_REPEATS, REPEATS = 50, 5
PAIR_SEC = 0.2
SLOW_PAIR = 0.5
"""Of a good pair's bandwidth, or a good pair's latency over this and a bit more, before a pair is at fault."""
SLOW_LATENCY_SEC = 0.5e-3


@dataclass(frozen=True)
class Pair:
    """Two nodes: seconds of the shortest message one way, and bytes a second."""

    names: tuple[str, str]
    latency_sec: float
    bytes_per_sec: float


def rounds_of_pairs(size: int) -> list[list[tuple[int, int]]]:
    """Return every pair of ``size`` nodes once, in rounds in which each node is in one pair at most (circle method)."""
    places = [*range(size), *([] if size % 2 == 0 else [-1])]
    rounds = []
    for _ in range(len(places) - 1):
        half = len(places) // 2
        pairs = zip(places[:half], reversed(places[half:]), strict=True)
        rounds.append([(min(pair), max(pair)) for pair in pairs if -1 not in pair])
        places = [places[0], places[-1], *places[1:-1]]
    return rounds


def measure_pairs(nodes: Sequence[Node], probes: Sequence[Any], tell: Tell) -> list[Pair]:
    """Measure every pair of nodes, those at fault a second time: another program may have kept one busy."""
    rounds, found = rounds_of_pairs(len(nodes)), []
    for number, pairs in enumerate(rounds):
        tell("network: pairs of nodes", number, len(rounds))
        found += _play(nodes, probes, pairs)
    places = [pair for pairs in rounds for pair in pairs]
    for index in [index for index, pair in enumerate(found) if is_at_fault(pair, found)]:
        (again,) = _play(nodes, probes, [places[index]])
        found[index] = better(found[index], again)
    return found


def _play(nodes: Sequence[Node], probes: Sequence[Any], pairs: Sequence[tuple[int, int]]) -> list[Pair]:
    def times(num_bytes: int, repeats: int) -> list[float]:
        playing = [
            probes[here].ping_pong.remote(there, serves, num_bytes, repeats)
            for one, two in pairs
            for here, there, serves in ((one, two, True), (two, one, False))
        ]
        return list(ray.get(playing, timeout=CALL_SEC))[::2]

    times(4, 1)  # makes the connections
    quick = times(4, LATENCY_REPEATS)
    once = max(times(FIRST_BYTES, 1))
    num_bytes = int(min(MOST_BYTES, max(FIRST_BYTES, FIRST_BYTES * PAIR_SEC / once / REPEATS)))
    return [
        Pair((nodes[one].name, nodes[two].name), back_sec / 2, 2 * num_bytes / both_sec)
        for (one, two), back_sec, both_sec in zip(pairs, quick, times(num_bytes, REPEATS), strict=True)
    ]


def is_at_fault(pair: Pair, pairs: Sequence[Pair]) -> bool:
    """Tell whether a pair is much slower than the good ones."""
    good = good_pair(pairs)
    return (
        pair.bytes_per_sec < SLOW_PAIR * good.bytes_per_sec
        or pair.latency_sec > good.latency_sec / SLOW_PAIR + SLOW_LATENCY_SEC
    )


def good_pair(pairs: Sequence[Pair]) -> Pair:
    """Return the upper quartile of bandwidth and latency: of three nodes one bad one spoils two pairs of three."""
    rank = len(pairs) // 4
    latency_sec = sorted(pair.latency_sec for pair in pairs)[rank]
    return Pair(("", ""), latency_sec, sorted((pair.bytes_per_sec for pair in pairs), reverse=True)[rank])


def better(one: Pair, two: Pair) -> Pair:
    """Return the better figures of two measurements of a pair."""
    return Pair(one.names, min(one.latency_sec, two.latency_sec), max(one.bytes_per_sec, two.bytes_per_sec))


def judge_pairs(pairs: Sequence[Pair]) -> Iterator[Finding]:
    """Yield what to say of the slowest pair; nothing where there is only one."""
    if len(pairs) < 2:
        return
    good = good_pair(pairs)
    faults = [pair for pair in pairs if is_at_fault(pair, pairs)]
    worst = min(
        faults or pairs,
        key=lambda pair: min(pair.bytes_per_sec / good.bytes_per_sec, good.latency_sec / pair.latency_sec),
    )
    common = set.intersection(*(set(pair.names) for pair in faults)) if len(faults) > 1 else set()
    more = f"; so are {len(faults) - 1} more" if len(faults) > 1 else ""
    more += f", all with {min(common)}" if common else ""
    yield Finding(
        "slowest pair of nodes",
        f"{' and '.join(worst.names)}: {worst.bytes_per_sec / 1e6:,.1f} MB/s, {worst.latency_sec * 1e3:.2f} ms;"
        f" good ones of all {len(pairs)}: {good.bytes_per_sec / 1e6:,.1f} MB/s, {good.latency_sec * 1e3:.2f} ms{more}",
        good=not faults,
        remedy="all wait for this pair: look at its cables, its switch and its interfaces' speed, or leave a node out",
        facts={"pairs": [_row(pair) for pair in pairs]},
    )


def _row(pair: Pair) -> Mapping[str, Any]:
    return {"nodes": list(pair.names), "latency_sec": pair.latency_sec, "bytes_per_sec": pair.bytes_per_sec}
