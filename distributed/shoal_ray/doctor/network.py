"""The network between the nodes, measured with what training uses: all-reduces over one worker per node."""

import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import ray

from shoal_ray.doctor import network_probe
from shoal_ray.doctor.finding import Finding, Tell
from shoal_ray.doctor.nodes import Node, actor
from shoal_ray.doctor.pairs import judge_pairs, measure_pairs

START_SEC = 90
CALL_SEC = 120
FIRST_BYTES, MOST_BYTES = 1 << 20, 64 << 20
LONG_SEC = 0.1
"""An all-reduce of so many seconds shows the bandwidth; a shorter one grows."""
LOOK_SEC = 1.0
"""Between two looks of the progress."""
LATENCY_REPEATS = 50
GRADIENT_BYTES = 10_000_000
SLOW_BYTES_PER_SEC = 12.5e6
"""100 Mbit/s."""

ray.cloudpickle.register_pickle_by_value(network_probe)  # type: ignore[no-untyped-call]  # ray's own


def look_at_network(nodes: Sequence[Node], seconds: float, tell: Tell) -> Iterator[Finding]:
    """Measure all-reduces over one worker per node for some seconds, then every pair of nodes."""
    if len(nodes) < 2:
        yield Finding("network", "one node: nothing to go between nodes")
        return
    machines = {node.described["NodeManagerAddress"] for node in nodes}
    if len(machines) > 1 and (lost := [node for node in nodes if _listens_to_itself(node)]):
        yield from map(_loopback, lost)
        return
    tell("network: workers start", 0, None)
    backend, probes = _started(nodes)
    try:
        _join(nodes, probes, backend)
        yield from _all_reduce(nodes, probes, backend, seconds, tell)
        yield from judge_pairs(measure_pairs(nodes, probes, tell))
    except ray.exceptions.RayError as error:
        said = str(error).strip().splitlines()
        yield Finding(
            "network",
            f"an all-reduce over {len(nodes)} nodes failed: {said[-1] if said else type(error).__name__}",
            good=False,
            remedy="let the nodes reach each other on every port; GLOO_SOCKET_IFNAME names the interface to use",
        )
    finally:
        for probe in probes:
            ray.kill(probe)


def _listens_to_itself(node: Node) -> bool:
    """Tell whether a node's workers would wait for the others on an address that only it can reach."""
    return str(node.facts["interface"]["address"] or "127.").startswith("127.")


def _loopback(node: Node) -> Finding:
    return Finding(
        f"interface of {node.name}",
        f"its workers would train over {node.facts['interface']['name']}, which no other node reaches: its host name"
        f" {node.facts['host']} leads to no address of a network",
        good=False,
        remedy=f"let /etc/hosts there say {node.described['NodeManagerAddress']} {node.facts['host']}, or start Ray"
        " there with GLOO_SOCKET_IFNAME set to the right interface",
    )


def _started(nodes: Sequence[Node]) -> tuple[str, list[Any]]:
    """Return a probe on every node: on GPUs over nccl where each has one that is free, else over gloo."""
    kind = network_probe.NetworkProbe
    if all(node.described["Resources"].get("GPU", 0) >= 1 for node in nodes):
        probes = [actor(kind, node.described, num_gpus=1) for node in nodes]
        started = [probe.__ray_ready__.remote() for probe in probes]
        if len(ray.wait(started, num_returns=len(probes), timeout=START_SEC)[0]) == len(probes):
            return "nccl", probes
        for probe in probes:
            ray.kill(probe)
    return "gloo", [actor(kind, node.described) for node in nodes]


def _join(nodes: Sequence[Node], probes: Sequence[Any], backend: str) -> None:
    size, address = len(nodes), nodes[0].described["NodeManagerAddress"]
    port = ray.get(probes[0].listen.remote(address, size), timeout=START_SEC)
    joining = [probe.join.remote(rank, size, address, port, backend) for rank, probe in enumerate(probes)]
    ray.get(joining, timeout=START_SEC)


def _all_reduce(
    nodes: Sequence[Node], probes: Sequence[Any], backend: str, seconds: float, tell: Tell
) -> Iterator[Finding]:
    def slowest(num_bytes: int, repeats: int) -> float:
        return float(max(ray.get([probe.all_reduce.remote(num_bytes, repeats) for probe in probes], timeout=CALL_SEC)))

    what, began = f"network: all-reduce over {len(nodes)} nodes", time.monotonic()
    tell(what, 0.0, seconds)
    latency_sec = min(slowest(4, LATENCY_REPEATS) for _ in range(3))
    num_bytes = FIRST_BYTES
    while (once := slowest(num_bytes, 1)) < LONG_SEC and num_bytes < MOST_BYTES:
        num_bytes *= 4
    taken: list[float] = []
    while not taken or time.monotonic() - began < seconds:
        repeats = max(1, int(min(LOOK_SEC, seconds - (time.monotonic() - began)) / once))
        taken.append(slowest(num_bytes, repeats))
        tell(what, min(seconds, time.monotonic() - began), seconds)
    size = len(nodes)
    # What each link carries: an all-reduce moves 2 (n - 1) / n of the data over it (nccl-tests, PERFORMANCE.md).
    bandwidth = num_bytes / median(taken) * 2 * (size - 1) / size
    gradient_sec = latency_sec + GRADIENT_BYTES * 2 * (size - 1) / size / bandwidth
    over = sorted({node.facts["interface"]["name"] for node in nodes})
    yield Finding(
        "network",
        f"all-reduce over {size} nodes, {backend} on {', '.join(over)}: {bandwidth / 1e6:,.1f} MB/s bus bandwidth,"
        f" {latency_sec * 1e3:.2f} ms latency; 10 MB of gradients take {gradient_sec * 1e3:,.0f} ms",
        good=bandwidth >= SLOW_BYTES_PER_SEC,
        remedy="every step waits that long for the others: use a faster network, or larger batches",
        facts={
            "backend": backend,
            "bus_bytes_per_sec": bandwidth,
            "latency_sec": latency_sec,
            "message_bytes": num_bytes,
            "interfaces": over,
        },
    )
