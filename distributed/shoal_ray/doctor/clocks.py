"""How far the nodes' clocks are from this machine's."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from shoal_ray.doctor.finding import Finding

ROUND_TRIPS = 12
MOST_SEC = 1.0
"""Of difference, before it is a fault: clocks that anyone keeps are a hundred times closer."""


@dataclass(frozen=True)
class Offset:
    """How far another clock is ahead of this one: ``sec``, give or take ``error_sec``."""

    sec: float
    error_sec: float


def offset(trips: Sequence[tuple[float, float, float]]) -> Offset:
    """Return the offset of another clock from round trips, each (sent, answered there, received), in seconds.

    The quickest one counts: its answer was given at most half its length from its middle (Mills 1991, Internet time
    synchronization: the network time protocol, IEEE Trans. Communications 39(10), section IV).
    """
    sent, answered, received = min(trips, key=lambda trip: trip[2] - trip[0])
    return Offset(answered - (sent + received) / 2, (received - sent) / 2)


def round_trips(ask: Callable[[], float]) -> list[tuple[float, float, float]]:
    """Ask another clock several times."""
    found = []
    for _ in range(ROUND_TRIPS):
        sent = time.time()
        answered = ask()
        found.append((sent, answered, time.time()))
    return found


def judge(offsets: Mapping[str, Offset]) -> list[Finding]:
    """Return what to say of the clocks of nodes, by node."""
    if not offsets:
        return []
    facts = {node: {"offset_sec": found.sec, "error_sec": found.error_sec} for node, found in offsets.items()}
    wrong = {node: found for node, found in offsets.items() if abs(found.sec) - found.error_sec > MOST_SEC}
    if wrong:
        return [
            Finding(
                f"clock of {node}",
                f"{abs(found.sec):,.1f} s {'ahead of' if found.sec > 0 else 'behind'} this machine's",
                good=False,
                remedy="keep it right: install chrony, or timedatectl set-ntp true. Object stores refuse what is"
                " signed at another time",
                facts=facts[node],
            )
            for node, found in wrong.items()
        ]
    farthest = max(offsets.values(), key=lambda found: abs(found.sec))
    said = f"within {abs(farthest.sec) * 1e3:.1f} ms of this machine's (measured to {farthest.error_sec * 1e3:.1f} ms)"
    return [Finding("clocks", said, facts=facts)]
