"""A look at the machine and the cluster: what is there, what is missing, and how to get it."""

from collections.abc import Callable, Iterator
from functools import partial

from shoal.errors import ClusterError
from shoal.run_files import Place
from shoal_ray.doctor import machine
from shoal_ray.doctor.finding import Finding, Tell

__all__ = ["Finding", "Tell", "examine"]

Look = Callable[[], Iterator[Finding]]


def examine(
    address: str | None,
    storage: Place,
    *,
    network_sec: float = 10.0,
    looks_at_storage: bool = True,
    tell: Tell = lambda what, done, total: None,
) -> Iterator[Finding]:
    """Look at versions, devices, storage and, if an address is given, every node of that cluster.

    What cannot even be looked at is a finding too: the others may tell why.

    Args:
        address: of a Ray cluster.
        storage: where runs would go, a folder or a URI.
        network_sec: how long to measure the network between the nodes; 0: not at all.
        looks_at_storage: whether to write there, and to read it on every node.
        tell: told of looks that take long.
    """
    looks: dict[str, Look] = {"versions": machine.look_at_versions, "devices": machine.look_at_devices}
    if looks_at_storage:
        looks[f"storage {storage}"] = partial(machine.look_at_storage, storage)
    for what, look in looks.items():
        yield from _guarded(what, look)
    if address is None:
        yield Finding("ray cluster", "none asked for; `shoal train` starts one on this machine, --address looks at one")
    else:
        yield from _guarded(
            "ray cluster", partial(_cluster, address, storage if looks_at_storage else None, network_sec, tell)
        )


def _cluster(address: str, storage: Place | None, network_sec: float, tell: Tell) -> Iterator[Finding]:
    from shoal_ray import cluster

    try:
        with cluster.connected(address):
            from shoal_ray.doctor import network, nodes

            found: list[nodes.Node] = []
            yield from nodes.look_at_nodes(found, tell)
            looks: dict[str, Look] = {
                "versions on all nodes": partial(nodes.compare_versions, found),
                "clocks": partial(nodes.compare_clocks, found, tell),
            }
            if storage is not None:
                looks[f"storage {storage} from all nodes"] = partial(nodes.share_storage, found, storage, tell)
            if network_sec > 0:
                looks["network"] = partial(network.look_at_network, found, network_sec, tell)
            for what, look in looks.items():
                yield from _guarded(what, look)
    except ClusterError as error:
        yield Finding("ray cluster", str(error), good=False, remedy="see the message")


def _guarded(what: str, look: Look) -> Iterator[Finding]:
    try:
        yield from look()
    except Exception as error:
        yield Finding(what, f"{type(error).__name__}: {error}", good=False, remedy="mend this first")
