"""A Ray cluster to train on: connect to it, and what of it is free."""

import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray._private.utils import read_ray_address

from shoal.errors import ClusterError
from shoal_ray import warm
from shoal_ray.resources import Resources, grown

KNOCK_TIMEOUT_SEC = 5


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


def alive_nodes() -> list[dict[str, Any]]:
    """Return Ray's description of every node that is up."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # ray's own


def possible_nodes() -> list[Mapping[str, float]]:
    """Return what every node has that is up, or that comes when there is work for it."""
    return grown([node["Resources"] for node in alive_nodes()])


def facts(resources: Resources, address: str | None) -> dict[str, Any]:
    """Return what a run notes of the cluster it ran on."""
    return {"launcher": "ray", "address": address or "local", **vars(resources)}
