"""A look at the machine and the cluster: what is there, what is missing, and how to get it."""

import os
import platform
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from shoal.errors import ClusterError

PACKAGES = ("shoal", "torch", "torchvision", "ray", "pyarrow", "tensorboard", "safetensors", "torchmetrics")
LEAST_FREE_BYTES = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``remedy`` says what to do where it is not ``good``."""

    what: str
    found: str
    good: bool = True
    remedy: str = ""


def examine(address: str | None, storage: Path) -> Iterator[Finding]:
    """Look at versions, devices, storage and, if an address is given, every node of that cluster.

    What cannot even be looked at is a finding too: the others may tell why.
    """
    looks: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": _versions,
        "devices": _devices,
        f"storage {storage}": partial(_storage, storage),
        "ray cluster": partial(_cluster, address, storage),
    }
    for what, look in looks.items():
        try:
            yield from look()
        except Exception as error:
            yield Finding(what, f"{type(error).__name__}: {error}", good=False, remedy="mend this first")


def _versions() -> Iterator[Finding]:
    yield Finding("python", platform.python_version())
    for package in PACKAGES:
        try:
            yield Finding(package, version(package))
        except PackageNotFoundError:
            yield Finding(package, "not installed", good=False, remedy=f"pip install {package}")


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding("cpus", f"{os.process_cpu_count() if hasattr(os, 'process_cpu_count') else os.cpu_count()}")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        yield Finding("gpus", f"{', '.join(names)}; nccl {'yes' if torch.distributed.is_nccl_available() else 'no'}")
    else:
        mps = torch.backends.mps.is_available()
        yield Finding("gpus", "Apple MPS (one worker, --local)" if mps else "none: gloo on the CPU")


def _storage(folder: Path) -> Iterator[Finding]:
    elsewhere = "give --storage elsewhere"
    if folder.exists() and not folder.is_dir():
        yield Finding(f"storage {folder}", "is not a folder", good=False, remedy=elsewhere)
        return
    existing = next(path for path in [folder.resolve(), *folder.resolve().parents] if path.is_dir())
    what, free = f"storage {folder}", shutil.disk_usage(existing).free
    mark = existing / f".shoal-doctor-{secrets.token_hex(4)}"
    try:
        mark.write_text("")
        mark.unlink()
    except OSError as error:
        yield Finding(what, f"cannot be written: {error.strerror}", good=False, remedy=elsewhere)
        return
    found = f"writable, {free / (1 << 30):.1f} GiB free"
    yield Finding(what, found, good=free >= LEAST_FREE_BYTES, remedy="make room: a run keeps checkpoints there")


def _cluster(address: str | None, storage: Path) -> Iterator[Finding]:
    if address is None:
        yield Finding("ray cluster", "none asked for; `shoal train` starts one on this machine, --address looks at one")
        return
    from shoal_ray import cluster

    try:
        with cluster.connected(address):
            nodes = cluster.alive_nodes()
            for node in nodes:
                has = node["Resources"]
                found = f"{has.get('CPU', 0):g} CPUs, {has.get('GPU', 0):g} GPUs, {has['memory'] / (1 << 30):.1f} GiB"
                yield Finding(f"node {node['NodeManagerHostname']} {node['NodeManagerAddress']}", found)
            try:
                cluster.check_nodes(nodes, storage.resolve(), data=None)
            except OSError as error:
                found, remedy = f"{storage}: {error.strerror}", "give --storage that every node can write"
                yield Finding("nodes agree", found, good=False, remedy=remedy)
            else:
                yield Finding("nodes agree", f"versions, and {storage} is shared by all {len(nodes)}")
    except ClusterError as error:
        yield Finding("ray cluster", str(error), good=False, remedy="see the message")
