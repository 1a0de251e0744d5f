"""A Ray cluster to train on: connect to it, and refuse what it cannot do before anything starts."""

import logging
import os
import platform
import secrets
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray._private.utils import read_ray_address
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shoal.data import load_manifest
from shoal.errors import ClusterError, StorageError
from shoal.run_files import Place, local_path
from shoal.storage.location import Location
from shoal.storage.retry import Patience, patience
from shoal_ray import warm
from shoal_ray.resources import Resources, check_capacity, fitting, settle_gpus

KNOCK_TIMEOUT_SEC = 5

PROBE_TIMEOUT_SEC = 60
"""How long a node may take to answer; a fresh worker process imports torch first."""

KEEP_WARM_SEC = 120.0
"""Nurseries that nobody asks for end after some minutes; those of spare nodes are to be there when they are needed."""

PROBE_PATIENCE_SEC = 15
"""How long a node waits for a store, within that."""


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to the cluster at ``address``, or start one on this machine; leave it at the end.

    Raises:
        ClusterError: nobody answers there.
    """
    # How soon a lost worker is noticed, and the end of the run; Ray's own 2 s are long next to a short run.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # The controller of a run is in this process: its log would be on the screen.
    os.environ.setdefault("RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING", "0")
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    # An actor of its own that watches for cloud preemption notices: nothing to see on one's own machines.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if address:
        refuse_silence(address)
    try:
        ray.init(
            address=address or "local",
            namespace=f"shoal-{secrets.token_hex(4)}",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=None if address else {"py_executable": warm.begin()},
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(_unreachable(address, str(error).strip().partition("\n")[0])) from None
    try:
        yield
    finally:
        ray.shutdown()


def refuse_silence(address: str) -> None:
    """Knock at a cluster's port: ``ray.init`` itself waits for minutes where nobody answers.

    Raises:
        ClusterError: nobody does.
    """
    place = (os.environ.get("RAY_ADDRESS") or read_ray_address()) if address == "auto" else address
    if not place:
        raise ClusterError(_unreachable(address, "no cluster runs on this machine"))
    host, _, port = place.rpartition(":")
    if "://" in place or not port.isdigit():
        raise ClusterError(_unreachable(address, "an address is HOST:PORT, e.g. ray-head:6379, or auto"))
    try:
        socket.create_connection((host, int(port)), timeout=KNOCK_TIMEOUT_SEC).close()
    except OSError as error:
        raise ClusterError(_unreachable(place, error.strerror or str(error))) from None


def _unreachable(address: str | None, why: str) -> str:
    if address is None:
        return f"cannot start Ray on this machine: {why}. See `shoal doctor`, or train without it: --local"
    return (
        f"cannot connect to the Ray cluster at {address}: {why}. Start one with `ray start --head` or"
        " `ray up cluster.yaml`, or leave out --address to use this machine"
    )


def free_nodes() -> list[Mapping[str, float]]:
    """Return what nobody uses of every node that is up."""
    found: dict[str, Mapping[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]  # ray's own
    return list(found.values())


def free_resources() -> str:
    """Return what of the cluster nobody uses, in words."""
    free = free_nodes()
    cpus, gpus = (sum(node.get(kind, 0) for node in free) for kind in ("CPU", "GPU"))
    return f"{cpus:g} CPUs, {gpus:g} GPUs on {len(free)} node(s)"


@dataclass(frozen=True)
class Ready:
    """What a preflight found.

    Attributes:
        resources: with the GPUs settled.
        worker_env: Ray's runtime environment of workers: how they start, where that is other than usual.
    """

    resources: Resources
    worker_env: Mapping[str, str]


def preflight(resources: Resources, run_parent: Place, data: Location) -> Ready:
    """Check capacity, versions, storage and data on every node, and have each prepare for workers.

    Raises:
        ClusterError: says what there is and what was asked for.
    """
    nodes = alive_nodes()
    settled = settle_gpus(resources, [node["Resources"] for node in nodes])
    check_capacity(settled, [node["Resources"] for node in nodes])
    context, pythons = ray.get_runtime_context(), [sys.executable]
    if len(nodes) > 1 or nodes[0]["NodeID"] != context.get_node_id():
        pythons = check_nodes(nodes, run_parent, data, settled)
    return Ready(settled, warm.runtime_env(pythons, [*context.runtime_env]))


def alive_nodes() -> list[dict[str, Any]]:
    """Return Ray's description of every node that is up."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # ray's own


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
        for name, reference in asked.items():
            try:
                answer = ray.get(reference, timeout=PROBE_TIMEOUT_SEC)
            except ray.exceptions.RayError as error:
                problems.append(f"{name}: no answer: {str(error).strip().splitlines()[-1]}; install shoal there")
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
    """Return what must be the same on every node: Python up to its minor version, torch, ray, shoal."""
    major, minor, _ = platform.python_version_tuple()
    return {"python": f"{major}.{minor}"} | {package: version(package) for package in ("torch", "ray", "shoal")}


def facts(resources: Resources, address: str | None) -> dict[str, Any]:
    """Return what a run notes of the cluster it ran on."""
    return {"launcher": "ray", "address": address or "local", **vars(resources)}
