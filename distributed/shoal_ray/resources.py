"""What a run asks of a cluster, and whether it fits: arithmetic, without Ray."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shoal.errors import ClusterError


@dataclass(frozen=True)
class Resources:
    """What a run asks of the cluster.

    Attributes:
        workers: DDP workers.
        cpus_per_worker: may be a fraction.
        gpus_per_worker: None: one where the cluster has enough, else none. Below one, workers share a GPU over gloo.
    """

    workers: int = 1
    cpus_per_worker: float = 1.0
    gpus_per_worker: float | None = None


def settle_gpus(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> Resources:
    """Choose one GPU per worker where every worker can have one, and none otherwise, if nothing was said."""
    if resources.gpus_per_worker is not None:
        return resources
    each = 1.0 if sum(int(node.get("GPU", 0)) for node in nodes) >= resources.workers else 0.0
    return replace(resources, gpus_per_worker=each)


def check_capacity(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuse more workers than fit, counted node by node: a worker cannot be split over two.

    Raises:
        ClusterError: with what the cluster has, what was asked for, and what would fit.
    """
    gpus = resources.gpus_per_worker or 0.0
    for flag, value in (("--cpus-per-worker", resources.cpus_per_worker), ("--gpus-per-worker", gpus)):
        if not math.isfinite(value):
            raise ClusterError(f"{flag} {value} is not an amount; use e.g. {flag} 1")
    if gpus > 1 and not gpus.is_integer():
        raise ClusterError(
            f"--gpus-per-worker {gpus:g}: Ray gives whole GPUs or a share of one; use {int(gpus)}, or less than 1"
        )
    asked = {"CPU": resources.cpus_per_worker, "GPU": gpus}
    fit = fitting(resources, nodes)
    if fit >= resources.workers:
        return
    total = {kind: sum(node.get(kind, 0) for node in nodes) for kind in asked}
    needed = ", ".join(f"{each:g} {kind}" for kind, each in asked.items() if each)
    remedy = f"use --workers {fit}" if fit else "ask for less"
    short = (
        "--gpus-per-worker" if asked["GPU"] and total["GPU"] < resources.workers * asked["GPU"] else "--cpus-per-worker"
    )
    raise ClusterError(
        f"{resources.workers} workers of {needed} each do not fit: the cluster has {total['CPU']:g} CPUs and"
        f" {total['GPU']:g} GPUs on {len(nodes)} node(s), room for {fit}; {remedy}, a smaller {short},"
        " or a larger cluster"
    )


def fitting(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many workers fit, counted node by node; as many as were asked for where they ask for nothing."""
    asked = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker or 0.0}

    def places(kind: str, each: float, there: float) -> int:
        if kind == "GPU" and each < 1:  # Ray takes a share from one GPU, never from two
            return int(there) * int(1 / each + 1e-9)
        return int(there / each + 1e-9)

    return sum(
        min((places(kind, each, node.get(kind, 0)) for kind, each in asked.items() if each), default=resources.workers)
        for node in nodes
    )
