"""What a run asks of a cluster, and whether it fits: arithmetic, without Ray."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shoal.errors import ClusterError, ConfigError

NODES, NODE_PREFIX = "shoal_nodes", "shoal_node_"
"""Resources by which the head of a cluster that grows tells how far: ``shoal_nodes`` machines of ``shoal_node_CPU`` and
``shoal_node_GPU`` each, at most. Ray keeps its launcher's limits to itself."""

HEAD = "node:__internal_head__"
"""A resource that Ray gives to the head alone."""

SETTLE_SEC = 3.0
"""How long a run that could do with fewer workers waits for more: what dead workers had is free a moment later."""


@dataclass(frozen=True)
class Resources:
    """What a run asks of the cluster.

    Attributes:
        workers: DDP workers; of an elastic run, at most.
        cpus_per_worker: may be a fraction.
        gpus_per_worker: None: one where the cluster has enough, else none. Below one, workers share a GPU over gloo.
        min_workers: of an elastic run, at least; None: exactly ``workers``.
    """

    workers: int = 1
    cpus_per_worker: float = 1.0
    gpus_per_worker: float | None = None
    min_workers: int | None = None

    @property
    def least(self) -> int:
        """With how many workers it can do."""
        return self.workers if self.min_workers is None else self.min_workers

    def __str__(self) -> str:
        """Return it in words, e.g. ``2 to 4 worker(s) of 1 CPU + 1 GPU``."""
        number = f"{self.workers}" if self.min_workers is None else f"{self.min_workers} to {self.workers}"
        gpus = f" + {self.gpus_per_worker:g} GPU" if self.gpus_per_worker else ""
        return f"{number} worker(s) of {self.cpus_per_worker:g} CPU{gpus}"


def parse_workers(text: str) -> tuple[int | None, int]:
    """Return the least and the greatest number of workers of ``N`` or ``MIN-MAX``; no least where one is given.

    Raises:
        ConfigError: it is neither.
    """
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip(), re.ASCII)
    if found is None:
        raise ConfigError(f"--workers {text}: give a number of workers, or the least and the most, e.g. 2-4")
    first, last = int(found[1]), int(found[2] or found[1])
    if first < 1:
        raise ConfigError(f"--workers {text}: a run needs one worker at least; give {max(1, last)}")
    if last < first:
        raise ConfigError(f"--workers {text}: the least comes first; give {last}-{first}")
    return (None if found[2] is None else first), last


def settle_gpus(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> Resources:
    """Choose one GPU per worker where every worker can have one, and none otherwise, if nothing was said."""
    if resources.gpus_per_worker is not None:
        return resources
    each = 1.0 if sum(int(node.get("GPU", 0)) for node in nodes) >= resources.least else 0.0
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
    if fit >= resources.least:
        return
    total = {kind: sum(node.get(kind, 0) for node in nodes) for kind in asked}
    needed = ", ".join(f"{each:g} {kind}" for kind, each in asked.items() if each)
    remedy = f"use --workers {fit}" if fit else "ask for less"
    short = (
        "--gpus-per-worker" if asked["GPU"] and total["GPU"] < resources.least * asked["GPU"] else "--cpus-per-worker"
    )
    raise ClusterError(
        f"{resources.least} workers of {needed} each do not fit: the cluster has {total['CPU']:g} CPUs and"
        f" {total['GPU']:g} GPUs on {len(nodes)} node(s), room for {fit}; {remedy}, a smaller {short},"
        " or a larger cluster"
    )


def grown(nodes: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    """Return what each node has, and what those will have that come when there is work for them."""
    promised = next((node for node in nodes if NODES in node), None)
    if promised is None:
        return list(nodes)
    each = {name.removeprefix(NODE_PREFIX): has for name, has in promised.items() if name.startswith(NODE_PREFIX)}
    here = sum(HEAD not in node for node in nodes)
    return [*nodes, *[each] * max(0, int(promised[NODES]) - here)]


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


def choose_workers(
    resources: Resources, free: int, there: int, waited_sec: float, *, grows: bool = False
) -> int | None:
    """Return with how many workers to start; None: wait.

    Args:
        resources: what is asked for.
        free: workers that fit into what nobody uses.
        there: workers that would fit if nobody used anything.
        waited_sec: for a start.
        grows: whether ``there`` counts nodes that come only when a group of workers waits for them.
    """
    if resources.min_workers is None:
        return resources.workers  # whose placement group waits in Ray's queue
    most = min(resources.workers, there)  # more will not come, whoever ends
    if most >= resources.least and (free >= most or (free >= resources.least and waited_sec >= SETTLE_SEC)):
        return min(free, most)
    if grows and most >= resources.least > free:
        return most  # a group that waits is what makes them come
    return None
