"""How many members train at once, and what each of their workers gets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shoal.errors import ClusterError
from shoal_ray.resources import Resources, check_capacity, fitting, settle_gpus

SMALLEST_SHARE = 0.01


@dataclass(frozen=True)
class Plan:
    """What a search asks of the cluster.

    Attributes:
        resources: of one member.
        slots: members that train at once.
    """

    resources: Resources
    slots: int


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
    settled = settle_gpus(replace(resources, workers=resources.workers), nodes)
    check_capacity(settled, nodes)
    room = fitting(settled, nodes) // settled.workers
    if room < population and parallel and not turns:
        raise ClusterError(
            f"a population of {population} members of {settled.workers} worker(s), {settled.cpus_per_worker:g} CPU and"
            f" {settled.gpus_per_worker or 0:g} GPU each, does not fit: the cluster has room for {room} at once. Use"
            f" --population {max(2, room)}, a smaller --cpus-per-worker or --gpus-per-worker, a larger cluster, or"
            " --turns to train them in turns"
        )
    return Plan(settled, min(room, population))


def _share(whole: float, workers: int) -> float:
    return max(SMALLEST_SHARE, math.floor(100 * whole / workers) / 100)
