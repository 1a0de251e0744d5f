"""What every node has to be able to do before anything starts, and what it prepares meanwhile."""

import platform
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import shoal
from shoal.data import load_manifest
from shoal.errors import ClusterError, StorageError
from shoal.run_files import Place, local_path
from shoal.storage.location import Location
from shoal.storage.retry import Patience, patience
from shoal_ray import warm
from shoal_ray.cluster import alive_nodes
from shoal_ray.resources import Resources, check_capacity, fitting, grown, settle_gpus

PROBE_TIMEOUT_SEC = 150
"""How long nodes may take to answer: each starts a process, one after the other where many runs begin at once."""

KEEP_WARM_SEC = 120.0
"""Nurseries that nobody asks for end after some minutes; those of spare nodes are to be there when they are needed."""

PROBE_PATIENCE_SEC = 15
"""How long a node waits for a store, within that."""


@dataclass(frozen=True)
class Ready:
    """What a preflight found.

    Attributes:
        resources: with the GPUs settled.
        worker_env: Ray's runtime environment of workers: how they start, where that is other than usual.
        pythons: the Python of each node.
    """

    resources: Resources
    worker_env: Mapping[str, str]
    pythons: Sequence[str]


def preflight(resources: Resources, run_parent: Place, data: Location, pythons: Sequence[str] = ()) -> Ready:
    """Check capacity, versions, storage and data on every node, and have each prepare for workers.

    Args:
        resources: asked for.
        run_parent: the folder of the runs.
        data: the data set.
        pythons: what every node answered a moment ago; then it is not asked again.

    Raises:
        ClusterError: says what there is and what was asked for.
    """
    nodes = alive_nodes()
    possible = grown([node["Resources"] for node in nodes])
    settled = settle_gpus(resources, possible)
    check_capacity(settled, possible)
    context = ray.get_runtime_context()
    if not pythons:
        alone = len(nodes) == 1 and nodes[0]["NodeID"] == context.get_node_id()
        pythons = [sys.executable] if alone else check_nodes(nodes, run_parent, data, settled)
    return Ready(settled, warm.runtime_env(pythons, [*context.runtime_env]), pythons)


def check_nodes(
    nodes: list[dict[str, Any]], run_parent: Place, data: Place | None, resources: Resources | None = None
) -> list[str]:
    """Ask every node for its versions, a file in the runs' folder, and the fingerprint of a data set, if one is named.

    Where a worker of ``resources`` would fit, a process starts to import what workers need.

    Returns:
        the Python of each node.

    Raises:
        ClusterError: names every node that differs.
        StorageError: the store of the runs refuses this machine, or does not answer.
    """
    with signing_place(run_parent) as shared:
        asked = {
            f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})": probe.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(
                str(shared),
                node["NodeID"],
                str(data) if data else None,
                resources is not None and fitting(resources, [node["Resources"]]) > 0,
            )
            for node in nodes
        }
        problems, pythons = [], []
        fingerprint = load_manifest(data).fingerprint if data else None
        deadline = time.monotonic() + PROBE_TIMEOUT_SEC
        for name, reference in asked.items():
            try:
                answer = ray.get(reference, timeout=max(0, deadline - time.monotonic()))
            except ray.exceptions.RayError as error:
                problems.append(f"{name}: {_no_answer(error)}")
                continue
            pythons.append(answer["executable"])
            problems += [
                f"{name}: {what} {answer[what]}, here {value}; install the same version everywhere"
                for what, value in versions().items()
                if answer[what] != value
            ]
            if answer["data"] != fingerprint:
                remedy = "put it on shared storage" if data and local_path(data) else "let that node reach it too"
                problems.append(f"{name}: cannot use the data set {data}: {answer['data']}; {remedy}")
            if not (shared / answer["node_id"]).exists():
                problems.append(
                    f"{name}: {run_parent} is not shared with it; give --out on storage every node mounts"
                    if shared.local
                    else f"{name}: cannot write to {run_parent}: {answer['storage']}; let that node write there too"
                )
        if problems:
            raise ClusterError("the cluster is not ready:\n  " + "\n  ".join(problems))
    return pythons


def _no_answer(error: ray.exceptions.RayError) -> str:
    """Return why a node said nothing, and what to do."""
    if isinstance(error, ray.exceptions.GetTimeoutError):
        return (
            f"no answer within {PROBE_TIMEOUT_SEC} s; it is very busy, or not well: look with `shoal doctor --address"
            " auto`, and try again"
        )
    said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    remedy = "install shoal there" if "No module named" in said else "look with `shoal doctor --address auto`"
    return f"no answer: {said}; {remedy}"


@contextmanager
def kept_warm(ready: Ready) -> Iterator[None]:
    """While the block lasts, keep what makes workers start fast alive on every node where one fits, new ones too."""
    if not ready.worker_env:
        yield
        return
    done = threading.Event()

    def ask() -> None:
        while not done.wait(KEEP_WARM_SEC):
            with suppress(ray.exceptions.RayError):
                for node in alive_nodes():
                    if fitting(ready.resources, [node["Resources"]]):
                        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                        prepare.options(scheduling_strategy=there).remote()

    thread = threading.Thread(target=ask, name="warm", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


@ray.remote(num_cpus=0, max_retries=0)
def prepare() -> None:
    """Run on one node: have its nursery started, or go on."""
    warm.hatch()


@contextmanager
def signing_place(run_parent: Place) -> Iterator[Location]:
    """Make a folder in the runs' folder in which every node can sign; it goes with the block."""
    path, name = local_path(run_parent), f".shoal-preflight-{secrets.token_hex(4)}"
    if path is not None:
        existing = next(folder for folder in [path, *path.parents] if folder.is_dir())
        (existing / name).mkdir()
        shared = Location.parse(existing / name)
    else:
        shared = Location.parse(run_parent) / name
    try:
        yield shared
    finally:
        with suppress(StorageError):  # the preflight's own answer counts
            shared.delete()


@ray.remote(num_cpus=0, max_retries=0)
def probe(shared: str, node_id: str, data: str | None, prepares: bool = False) -> dict[str, Any]:
    """Run on one node: tell versions and what it sees of the data set, and sign in the driver's folder if it can."""
    if prepares:
        warm.hatch()
    found: dict[str, Any] = versions() | {"node_id": node_id, "storage": None, "executable": sys.executable}
    place = Location.parse(shared)
    with patience(Patience(total_sec=PROBE_PATIENCE_SEC)):
        try:
            if place.local is None or place.exists():  # made by the driver, unless this is another machine's folder
                (place / node_id).write_bytes(socket.gethostname().encode())
        except (ValueError, OSError) as error:
            found["storage"] = str(error)
        try:
            found["data"] = load_manifest(Location.parse(data)).fingerprint if data else None
        except (ValueError, OSError) as error:
            found["data"] = str(error)
    return found


def versions() -> dict[str, str]:
    """Return what must be the same on every node: Python up to its minor version, torch, ray, shoal.

    Shoal's is that of the code which runs: a job may have brought its own.
    """
    major, minor, _ = platform.python_version_tuple()
    return {"python": f"{major}.{minor}", "torch": version("torch"), "ray": version("ray"), "shoal": shoal.__version__}
