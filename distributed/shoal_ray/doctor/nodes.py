"""Every node of a cluster: what it is, what is installed there, what time it has, and whether it sees the storage."""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shoal.run_files import Place, local_path
from shoal_ray import cluster, preflight
from shoal_ray.doctor import clocks, on_node
from shoal_ray.doctor.finding import GIB, Finding, Tell
from shoal_ray.doctor.gpu_findings import gpu_findings, ray_gpu_finding
from shoal_ray.doctor.machine import LEAST_FREE_BYTES, MAKE_ROOM

SAME_EVERYWHERE = ("python", "torch", "ray", "shoal")
FACTS_SEC = on_node.FACTS_SEC + 30
"""Longer than a node waits for its own tools, so that it can say which of them hangs."""

ANSWER_SEC = 60

# By value: a node where Shoal is not installed is to say so, and not to fail.
ray.cloudpickle.register_pickle_by_value(on_node)  # type: ignore[no-untyped-call]  # ray's own


@dataclass(frozen=True)
class Node:
    """A node that answers.

    Attributes:
        name: host and address.
        described: Ray's description.
        inspector: an actor there.
        facts: what it told.
    """

    name: str
    described: Mapping[str, Any]
    inspector: Any
    facts: Mapping[str, Any]


def look_at_nodes(found: list[Node], tell: Tell) -> Iterator[Finding]:
    """Look at every node of the connected cluster, and put those that answer into ``found``."""
    alive = cluster.alive_nodes()
    tell("nodes", 0, len(alive))
    asked = []
    for described in alive:
        inspector = actor(on_node.Inspector, described)
        asked.append((described, inspector, inspector.facts.remote(SAME_EVERYWHERE[1:])))
    names, deadline = names_of(alive), time.monotonic() + FACTS_SEC
    for number, (name, (described, inspector, answer)) in enumerate(zip(names, asked, strict=True), 1):
        try:
            node = Node(name, described, inspector, _told(answer, deadline))
        except ray.exceptions.RayError as error:
            yield Finding(
                f"node {name}",
                _silence(error, FACTS_SEC),
                good=False,
                remedy="look at the logs of Ray there, /tmp/ray/session_latest/logs",
            )
            continue
        found.append(node)
        yield _described(node)
        yield from gpu_findings(name, node.facts)
        offered = described["Resources"].get("GPU", 0)
        if trouble := ray_gpu_finding(name, offered, node.facts):
            yield trouble
        tell("nodes", number, len(alive))


def _told(answer: Any, deadline: float) -> Any:
    """Wait for an answer up to a time of the monotonic clock, which several may share."""
    return ray.get(answer, timeout=max(0.0, deadline - time.monotonic()))


def _silence(error: Exception, seconds: float) -> str:
    if isinstance(error, ray.exceptions.GetTimeoutError):
        return f"no answer within {seconds:g} s"
    said = str(error).strip().splitlines()
    return f"no answer: {said[-1] if said else type(error).__name__}"


def actor(kind: type, described: Mapping[str, Any], **options: Any) -> Any:
    """Start an actor on one node; it takes no CPU from what trains there."""
    there = NodeAffinitySchedulingStrategy(described["NodeID"], soft=False)
    make: Any = ray.remote(kind)
    return make.options(num_cpus=0, scheduling_strategy=there, **options).remote()


def names_of(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return each node's host and address, and where several nodes have one address, the beginning of its id too."""
    names = [f"{node['NodeManagerHostname']} {node['NodeManagerAddress']}" for node in nodes]
    return [
        name if names.count(name) == 1 else f"{name} {node['NodeID'][:8]}"
        for name, node in zip(names, nodes, strict=True)
    ]


def _described(node: Node) -> Finding:
    has, free = node.described["Resources"], node.facts["free_bytes"]
    found = (
        f"{has.get('CPU', 0):g} CPUs, {has.get('GPU', 0):g} GPUs, {has['memory'] / GIB:.1f} GiB; free: "
        + ", ".join(f"{place} {room / GIB:.1f} GiB" for place, room in free.items())
        + f"; {_interface(node.facts['interface'])}"
    )
    facts = {"resources": {name: has.get(name, 0) for name in ("CPU", "GPU", "memory")}, **node.facts}
    enough = free.get("/tmp", LEAST_FREE_BYTES) >= LEAST_FREE_BYTES
    return Finding(
        f"node {node.name}",
        found,
        good=enough,
        remedy="make room in /tmp: Ray keeps its logs and spilled objects there",
        facts=facts,
    )


def _interface(interface: Mapping[str, Any]) -> str:
    speed = interface["bits_per_sec"]
    return f"trains over {interface['name']}" + (f" ({speed / 1e9:g} Gbit/s)" if speed else "")


def compare_versions(nodes: Sequence[Node]) -> Iterator[Finding]:
    """Look whether Python, torch, ray and shoal are the same on all nodes and here."""
    places = {"this machine": on_node.versions(SAME_EVERYWHERE[1:])} | {
        node.name: node.facts["versions"] for node in nodes
    }
    mixed = False
    for what in SAME_EVERYWHERE:
        by_version: dict[str, list[str]] = {}
        for place, versions in places.items():
            by_version.setdefault(versions[what] or "not installed", []).append(place)
        if len(by_version) > 1 or "not installed" in by_version:
            mixed = True
            said = "; ".join(f"{which} on {', '.join(where)}" for which, where in by_version.items())
            yield Finding(
                f"{what} on all nodes", said, good=False, remedy="install the same version everywhere", facts=by_version
            )
    if not mixed:
        same = ", ".join(f"{what} {version}" for what, version in places["this machine"].items())
        yield Finding("versions on all nodes", same)


def compare_clocks(nodes: Sequence[Node], tell: Tell) -> Iterator[Finding]:
    """Look how far the nodes' clocks are from this machine's."""
    offsets = {}
    for number, node in enumerate(nodes):
        tell("clocks", number, len(nodes))
        try:
            trips = clocks.round_trips(lambda node=node: ray.get(node.inspector.now.remote(), timeout=ANSWER_SEC))  # type: ignore[misc]  # a default binds the node
        except ray.exceptions.RayError as error:
            found = _silence(error, ANSWER_SEC)
            remedy = "look whether that machine still works, and at /tmp/ray/session_latest/logs there"
            yield Finding(f"clock of {node.name}", found, good=False, remedy=remedy)
            continue
        offsets[node.name] = clocks.offset(trips)
    yield from clocks.judge(offsets)


def share_storage(nodes: Sequence[Node], storage: Place, tell: Tell) -> Iterator[Finding]:
    """Look whether every node reads what this machine writes into the runs' folder, or at a URI, and the reverse."""
    tell("shared storage", 0, None)
    expected, folder = secrets.token_bytes(16), local_path(storage)
    what, troubles, free = f"storage {storage}", 0, {}
    with preflight.signing_place(storage if folder is None else folder.resolve()) as shared:
        (shared / "doctor").write_bytes(expected)
        asked = [(node, node.inspector.sign.remote(str(shared), node.described["NodeID"], expected)) for node in nodes]
        deadline = time.monotonic() + ANSWER_SEC
        for node, answer in asked:
            try:
                said = _told(answer, deadline)
            except ray.exceptions.RayError as error:
                troubles += 1
                yield Finding(
                    f"{what} from {node.name}",
                    _silence(error, ANSWER_SEC),
                    good=False,
                    remedy="look at the mount there (does `ls` of it come back?), and whether its server answers",
                )
                continue
            mark = shared / node.described["NodeID"]
            if said["sees"] and not said["error"] and mark.exists() and mark.read_bytes() == expected:
                free[node.name] = said["free_bytes"]
                continue
            troubles += 1
            found = (
                said["error"]
                or "another folder there than here" * (not said["sees"])
                or "what it writes is not seen here"
            )
            yield Finding(
                f"{what} from {node.name}",
                found,
                good=False,
                remedy="give --storage that every node mounts, or s3://…"
                if shared.local
                else "let that node reach it too",
            )
    known = {name: room for name, room in free.items() if room is not None}
    least = min(known.values(), default=None)
    if free and not troubles:
        found = f"shared by all {len(nodes)} nodes"
        if least is not None:
            found += f", {least / GIB:.1f} GiB free"
        enough = least is None or least >= LEAST_FREE_BYTES
        yield Finding(f"{what} from all nodes", found, good=enough, remedy=MAKE_ROOM, facts={"free_bytes": known})
