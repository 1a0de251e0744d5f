"""Files that are either whole or absent: temporary name, fsync, rename, fsync of the folder."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
"""What the user can mend and trying again cannot."""


def sync_directory(path: Path) -> None:
    """Make renames inside a directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_beside(path: Path) -> Path:
    """Return a fresh hidden sibling of ``path``; the ``.tmp`` ending is what clean-up looks for."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say which file a full or read-only disk was met at: a failed write does not tell."""
    try:
        yield
    except OSError as error:
        if error.errno in CANNOT_WRITE and (error.filename is None or str(error.filename).endswith(".tmp")):
            error.filename = str(path)
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes ``path`` when the block ends without an error, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with _named(path), temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a UTF-8 text file atomically."""
    with atomic_file(path) as file:
        file.write(text.encode())


@contextmanager
def atomic_directory(path: Path, *, parents: bool = True) -> Iterator[Path]:
    """Yield an empty directory that becomes ``path`` when the block ends without an error, and vanishes otherwise.

    ``path`` must not exist, unless as an empty directory: a rename replaces that and nothing else. The folder that it
    lies in is made if need be, and all above that unless ``parents`` is false.
    """
    path.parent.mkdir(parents=parents, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with _named(path):
            temporary.mkdir()
            yield temporary
            for folder, _, names in os.walk(temporary):
                for name in names:
                    with (Path(folder) / name).open("rb") as file:
                        os.fsync(file.fileno())
                sync_directory(Path(folder))
            temporary.replace(path)
            sync_directory(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def in_place_of(path: Path, *, parents: bool = True) -> Iterator[Path]:
    """Yield an empty directory that becomes ``path`` when the block ends without an error; then the old one goes.

    ``parents`` as in `atomic_directory`.
    """
    aside = temporary_beside(path)
    try:
        with atomic_directory(path, parents=parents) as folder:
            yield folder
            if path.exists():
                path.replace(aside)
    finally:
        if aside.exists() and not path.exists():
            aside.replace(path)
        shutil.rmtree(aside, ignore_errors=True)
