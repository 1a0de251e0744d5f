"""Fashion-MNIST (Xiao et al. 2017, MIT licence): 70,000 grey images of clothes, and where to find them."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from shoal.data.importers.idx import FILES, IdxSource, find_idx, open_idx
from shoal.errors import DataError

CLASS_NAMES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
INSTALL_SEC = 300

Notice = Callable[[str], None]
"""Told what is about to be done, in a sentence, before it is done."""


def open_fashion_mnist(
    src: Path | None,
    *,
    download_to: Path | None = None,
    may_install: bool = True,
    notice: Notice | None = None,
) -> IdxSource:
    """Open Fashion-MNIST in ``src``, or, where that is None, wherever ``find_fashion_mnist`` gets it.

    Its splits are train (60,000) and test (10,000), [1, 28, 28], ten classes. ``download_to`` defaults to the folder
    "downloads" in the working directory. Raises DataError.
    """
    if src is None:
        src = find_fashion_mnist(download_to or Path("downloads").absolute(), may_install=may_install, notice=notice)
    return replace(open_idx(src, class_names=CLASS_NAMES), kind="fashion-mnist")


def find_fashion_mnist(download_to: Path, *, may_install: bool, notice: Notice | None = None) -> Path:
    """Return a folder that holds the four idx files of Fashion-MNIST.

    Tries the folder in SHOAL_DATA, Debian's package, installing that package (where ``may_install`` and we are root),
    and torchvision's download into ``download_to``. Raises DataError that lists each try and why it failed.
    """
    say = notice or (lambda _: None)
    failures: list[str] = []
    tries: dict[str, Callable[[], Path]] = {
        "folder SHOAL_DATA": _in_environment,
        f"folder {DEBIAN_FOLDER}": lambda: _complete(DEBIAN_FOLDER),
        f"apt-get install {DEBIAN_PACKAGE}": lambda: _install(say, may_install),
        "torchvision's download": lambda: _download(download_to, say),
    }
    for name, attempt in tries.items():
        try:
            return attempt()
        except _NotHereError as why:
            failures.append(f"{name}: {why}")
    raise DataError(
        "Fashion-MNIST was not found; tried "
        + "; ".join(failures)
        + f". Put its four idx files into a folder and set SHOAL_DATA to it, or install Debian's {DEBIAN_PACKAGE}"
    )


class _NotHereError(Exception):
    """Why one of the places has no Fashion-MNIST."""


def _complete(folder: Path) -> Path:
    if not folder.is_dir():
        raise _NotHereError(f"{folder} is not a directory")
    for word in FILES.values():
        for kind in ("images", "labels"):
            if find_idx(folder, word, kind) is None:
                raise _NotHereError(f"{folder} has no {word}-{kind} file")
    return folder


def _in_environment() -> Path:
    value = os.environ.get("SHOAL_DATA")
    if not value:
        raise _NotHereError("not set")
    root = Path(value)
    inside = (root / "fashion-mnist", root / "FashionMNIST" / "raw")
    return _complete(next((folder for folder in inside if folder.is_dir()), root))


def _install(say: Notice, may_install: bool) -> Path:
    apt_get = shutil.which("apt-get")
    if not may_install:
        raise _NotHereError("not allowed here")
    if apt_get is None or os.geteuid() != 0:
        raise _NotHereError("there is no apt-get" if apt_get is None else "we are not root")
    say(f"Installing Debian's package {DEBIAN_PACKAGE} with apt-get")
    install = [apt_get, "install", "-y", DEBIAN_PACKAGE]
    try:
        # A fresh container has no package lists, so a failed install is tried again after fetching them.
        if error := _run(install):
            error = _run([apt_get, "update"]) or _run(install)
    except subprocess.TimeoutExpired:
        error = f"no answer within {INSTALL_SEC} s"
    if error:
        raise _NotHereError(error)
    return _complete(DEBIAN_FOLDER)


def _run(command: list[str]) -> str:
    """Run a command and return the last line of its complaint, or an empty string where it succeeded."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=INSTALL_SEC,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        check=False,
    )
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return lines[-1] if done.returncode else ""


def _download(folder: Path, say: Notice) -> Path:
    raw = folder / "FashionMNIST" / "raw"
    try:
        return _complete(raw)  # an earlier download
    except _NotHereError:
        say(f"Downloading Fashion-MNIST (31 MB) into {folder} with torchvision")
    try:
        from torchvision.datasets import FashionMNIST  # seconds to import, and needed nowhere else

        FashionMNIST(str(folder), download=True)
    except (ImportError, OSError, RuntimeError) as error:
        raise _NotHereError(str(error) or type(error).__name__) from None
    return _complete(raw)
