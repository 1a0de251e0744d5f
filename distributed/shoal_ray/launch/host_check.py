"""A look at the machines of a launcher's file: whether Shoal can be installed and Ray be started on each."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from shoal_ray.launch.cluster_file import ClusterFile
from shoal_ray.launch.findings import Finding
from shoal_ray.launch.visit import Visit, visit_all

PYTHONS = ((3, 11), (3, 14))
"""The first version that Shoal runs on, and the first one that it does not."""

INSTALL_BYTES = 12 << 30
"""PyTorch with its CUDA libraries, Ray, and pip's downloads of both."""

WORK_BYTES = 2 << 30
"""For what grows: Ray's logs and spilled objects, data blocks, working copies of runs."""

MOST_SKEW_SEC = 5.0

REMEDIES = {
    "Permission denied": "let this key in there: ssh-copy-id -i KEY.pub USER@ADDRESS",
    "Host key verification failed": "it is not the machine that it was; if that is right: ssh-keygen -R ADDRESS",
    "Host key for": "it is not the machine that it was; if that is right: ssh-keygen -R ADDRESS",
    "python3": "install Python 3.11 to 3.13 there",
    "bash: not found": "install bash there",
}
"""What to do about the last words of a login that failed."""

ELSE = "is it on, the address right, ssh let in by its firewall? Workers are reached through the head"


def check_hosts(file: ClusterFile) -> Iterator[Finding]:
    """Log in to every machine of a file, and look.

    Raises:
        ClusterError: no ssh here.
    """
    visits = visit_all(file)
    minors = Counter(tuple(visit.facts["python"][:2]) for visit in visits if visit.facts)
    for visit in visits:
        if not visit.facts:
            remedy = next((remedy for words, remedy in REMEDIES.items() if words in visit.trouble), ELSE)
            yield Finding(visit.address, "ssh", visit.trouble, good=False, remedy=remedy)
            continue
        yield Finding(visit.address, "ssh", "answers")
        yield _python(visit, minors.most_common(1)[0][0])
        yield from _tools(visit)
        yield from _space(visit)
        yield _clock(visit)
        yield _ports(visit)
        yield Finding(visit.address, "GPUs", _gpus(visit.facts["gpus"]))
        yield _network(visit, len(visits))


def _python(visit: Visit, usual: tuple[Any, ...]) -> Finding:
    version = tuple(visit.facts["python"])
    found = ".".join(map(str, version))
    if not PYTHONS[0] <= version[:2] < PYTHONS[1]:
        remedy = "install Python 3.11 to 3.13, and have python3 be it: PATH in ~/.bashrc"
        return Finding(visit.address, "python", found, good=False, remedy=remedy)
    if version[:2] != usual:
        remedy = f"install {usual[0]}.{usual[1]}, as on the others: Ray wants one version everywhere"
        return Finding(visit.address, "python", found, good=False, remedy=remedy)
    return Finding(visit.address, "python", found)


def _tools(visit: Visit) -> Iterator[Finding]:
    remedies = {"venv": "install it: apt-get install python3-venv", "rsync": "install it: apt-get install rsync"}
    for tool, remedy in remedies.items():
        there = bool(visit.facts[tool])
        yield Finding(visit.address, tool, "there" if there else "not there", good=there, remedy=remedy)


def _space(visit: Visit) -> Iterator[Finding]:
    home, tmp = visit.facts["free"]
    wanted = {home: WORK_BYTES if visit.facts["installed"] else INSTALL_BYTES, tmp: WORK_BYTES}
    short = [(place, free, wanted[place]) for place, free in visit.facts["free"].items() if free < wanted[place]]
    for place, free, least in short:
        found = f"{_gib(free)} free in {place}"
        remedy = f"make room: {_gib(least)} are needed" + ("" if least == WORK_BYTES else " to install PyTorch and Ray")
        yield Finding(visit.address, "disk", found, good=False, remedy=remedy)
    if not short:
        yield Finding(visit.address, "disk", f"{_gib(min(visit.facts['free'].values()))} free")


def _clock(visit: Visit) -> Finding:
    ahead, error = visit.skew_sec
    found = f"{ahead:+.1f} s"
    far = abs(ahead) - error > MOST_SKEW_SEC
    return Finding(visit.address, "clock", found, good=not far, remedy="set it: timedatectl set-ntp true")


def _ports(visit: Visit) -> Finding:
    taken = ", ".join(map(str, visit.facts["taken"]))
    if visit.facts["ray"]:
        return Finding(visit.address, "ports", "Ray runs")  # `ray up` stops and starts it
    remedy = "stop what listens there (ss -ltnp says what), since Ray will"
    return Finding(visit.address, "ports", f"taken: {taken}" if taken else "free", good=not taken, remedy=remedy)


def _gpus(lines: list[str]) -> str:
    kinds = Counter(line.partition(": ")[2].partition(" (UUID")[0] for line in lines)
    return ", ".join(f"{number} {kind}" for kind, number in kinds.items()) or "none"


def _network(visit: Visit, machines: int) -> Finding:
    lost = {address: why for address, why in visit.unreached.items() if why is not None}
    if lost:
        found = "cannot reach " + ", ".join(f"{address} ({why})" for address, why in lost.items())
        remedy = "open all TCP ports between the machines, and to nobody else: docs/security.md"
        return Finding(visit.address, "network", found, good=False, remedy=remedy)
    reached = len(visit.unreached)
    return Finding(visit.address, "network", f"reaches {reached} of {machines - 1}", good=True)


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.0f} GiB"
