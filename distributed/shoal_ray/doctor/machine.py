"""The machine that the doctor is called on: versions, devices, and where runs would go."""

import os
import platform
import secrets
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from shoal.errors import StorageError
from shoal.run_files import Place, local_path
from shoal.storage.location import Location
from shoal.storage.mirror import refuse_unwritable
from shoal.storage.retry import Patience, patience
from shoal_ray.doctor.finding import GIB, Finding
from shoal_ray.doctor.gpu_findings import gpu_findings
from shoal_ray.doctor.on_node import gpus

PACKAGES = ("shoal", "torch", "torchvision", "ray", "pyarrow", "tensorboard", "safetensors", "torchmetrics")
LEAST_FREE_BYTES = GIB
STORE_PATIENCE_SEC = 15
ELSEWHERE = "give --storage elsewhere"
MAKE_ROOM = "make room: a run keeps checkpoints there"


def look_at_versions() -> Iterator[Finding]:
    """Look at Python and the packages."""
    yield Finding("python", platform.python_version())
    for package in PACKAGES:
        try:
            yield Finding(package, version(package))
        except PackageNotFoundError:
            yield Finding(package, "not installed", good=False, remedy=f"pip install {package}")


def look_at_devices() -> Iterator[Finding]:
    """Look at processors and GPUs."""
    import torch

    yield Finding("cpus", f"{os.process_cpu_count() if hasattr(os, 'process_cpu_count') else os.cpu_count()}")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        yield Finding("gpus", f"{', '.join(names)}; nccl {'yes' if torch.distributed.is_nccl_available() else 'no'}")
    else:
        mps = torch.backends.mps.is_available()
        yield Finding("gpus", "Apple MPS (one worker, --local)" if mps else "none: gloo on the CPU")
    yield from gpu_findings("this machine", gpus())


def look_at_storage(storage: Place) -> Iterator[Finding]:
    """Look whether runs can be written to a folder or a URI from here, and whether there is room."""
    folder = local_path(storage)
    yield from _look_at_folder(folder) if folder is not None else _look_at_store(Location.parse(storage))


def _look_at_folder(folder: Path) -> Iterator[Finding]:
    if folder.exists() and not folder.is_dir():
        yield Finding(f"storage {folder}", "is not a folder", good=False, remedy=ELSEWHERE)
        return
    existing = next(path for path in [folder.resolve(), *folder.resolve().parents] if path.is_dir())
    what, free = f"storage {folder}", shutil.disk_usage(existing).free
    mark = existing / f".shoal-doctor-{secrets.token_hex(4)}"
    try:
        mark.write_text("")
        mark.unlink()
    except OSError as error:
        yield Finding(what, f"cannot be written: {error.strerror}", good=False, remedy=ELSEWHERE)
        return
    found = f"writable, {free / GIB:.1f} GiB free"
    yield Finding(what, found, good=free >= LEAST_FREE_BYTES, remedy=MAKE_ROOM, facts={"free_bytes": free})


def _look_at_store(home: Location) -> Iterator[Finding]:
    what = f"storage {home}"
    try:
        with patience(Patience(total_sec=STORE_PATIENCE_SEC, on_wait=lambda said: None)):
            refuse_unwritable(home)
    except StorageError as error:
        yield Finding(what, str(error), good=False, remedy="see the message, or " + ELSEWHERE)
    else:
        yield Finding(what, "written, read back and deleted from here")
