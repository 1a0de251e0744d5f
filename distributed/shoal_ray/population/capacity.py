"""How many members train at once, and what each of their workers gets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shoal.errors import ClusterError
from shoal_ray.resources import Resources, check_capacity, fitting, settle_gpus

SMALLEST_SHARE = 0.01
MEMBERS_PER_CPU = 4
"""At most, where members need not train at once: each imports torch, and each has to be started."""
MEMBER_BYTES = 700_000_000
"""Of memory that a member's processes take with one worker, before any model: measured with 33 on one machine."""


@dataclass(frozen=True)
class Plan:
    """What a search asks of the cluster.

    Attributes:
        resources: of one member.
        slots: members that train at once.
    """

    resources: Resources
    slots: int


def at_once(population: int, nodes: Sequence[Mapping[str, float]], *, parallel: bool) -> int:
    """Return how many members are to share this machine: all, or where they may come one after the other, a few."""
    cpus = sum(node.get("CPU", 0) for node in nodes)
    return population if parallel else min(population, max(1, int(MEMBERS_PER_CPU * cpus)))


def share_out(resources: Resources, population: int, nodes: Sequence[Mapping[str, float]]) -> Resources:
    """Give each worker such a share of this machine's CPUs and GPUs that the whole population fits.

    What was asked for by name stays as it is.
    """
    workers = population * resources.workers
    cpus = sum(node.get("CPU", 0) for node in nodes)
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    each = resources.gpus_per_worker
    if each is None:
        # A share is of one GPU: Ray gives no worker a part of two.
        each = _share(1, math.ceil(workers / gpus)) if gpus else 0.0
    return replace(resources, gpus_per_worker=each, cpus_per_worker=float(min(1, _share(cpus, workers))))


def plan(
    resources: Resources, population: int, nodes: Sequence[Mapping[str, float]], *, turns: bool, parallel: bool
) -> Plan:
    """Find how many members fit at once.

    Args:
        resources: of one member.
        population: members.
        nodes: what each node has.
        turns: whether members may train in turns.
        parallel: whether the algorithm needs all of them at once.

    Raises:
        ClusterError: with what fits.
    """
    settled = settle_gpus(resources, nodes)
    check_capacity(settled, nodes)
    memory = sum(node.get("memory", math.inf) for node in nodes)
    room = min(fitting(settled, nodes) // settled.workers, int(min(memory / MEMBER_BYTES, 1e9)))
    if room < population and parallel and not turns:
        raise ClusterError(
            f"a population of {population} members of {settled.workers} worker(s), {settled.cpus_per_worker:g} CPU and"
            f" {settled.gpus_per_worker or 0:g} GPU each,"
            f" and {MEMBER_BYTES / 1e9:g} GB of memory at least, does not fit: there is room for {room} at once. Use"
            f" --population {max(2, room)}, a smaller --cpus-per-worker or --gpus-per-worker, a larger cluster, or"
            " --turns to train them in turns"
        )
    return Plan(settled, max(1, min(room, population)))


def _share(whole: float, workers: int) -> float:
    return max(SMALLEST_SHARE, math.floor(100 * whole / workers) / 100)
