"""What can be done with a local path."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from shoal.errors import MissingError, StorageError
from shoal.files import CANNOT_WRITE, atomic_file

COPY_BYTES = 8 << 20


class LocalPath:
    """The operations of a `Location` on a path of this machine; `shoal.storage.location` describes them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        return self.path.exists()

    def size(self) -> int:
        with in_words(self.path):
            if self.path.is_dir():
                raise StorageError(f"{self.path} is a folder, not a file; name a file in it")
            return self.path.stat().st_size

    def modified(self) -> float:
        with in_words(self.path):
            return self.path.stat().st_mtime if self.path.exists() else 0.0

    def names(self) -> list[str]:
        with in_words(self.path):
            return sorted(entry.name for entry in self.path.iterdir()) if self.path.is_dir() else []

    def files(self) -> dict[str, int]:
        with in_words(self.path):
            found = (Path(folder, name) for folder, _, names in os.walk(self.path) for name in names)
            return {str(file.relative_to(self.path)): file.stat().st_size for file in sorted(found)}

    def read_bytes(self) -> bytes:
        with in_words(self.path):
            return self.path.read_bytes()

    def read_range(self, offset: int, num_bytes: int) -> bytes:
        with in_words(self.path), self.path.open("rb") as file:
            file.seek(offset)
            return file.read(num_bytes)

    def open_input(self) -> pa.NativeFile:
        with in_words(self.path):
            return pa.OSFile(str(self.path))

    def write_bytes(self, data: memoryview) -> None:
        with in_words(self.path), atomic_file(self.path) as file:
            file.write(data)

    def upload(self, source: Path) -> None:
        copy(source, self.path)

    def download(self, target: Path) -> None:
        copy(self.path, target)

    def delete(self) -> None:
        with in_words(self.path):
            if self.path.is_dir() and not self.path.is_symlink():
                shutil.rmtree(self.path)
            else:
                self.path.unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Copy a file; the target is whole or absent."""
    with in_words(source), source.open("rb") as read, atomic_file(target) as written:
        shutil.copyfileobj(read, written, COPY_BYTES)


@contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Say what an `OSError` of a local path means to the user."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingError(f"{error.filename or path}: no such file; check the path") from error
    except OSError as error:
        remedy = "make room, or choose another place" if error.errno in CANNOT_WRITE else "check the path and its disk"
        raise StorageError(f"{error.filename or path}: {error.strerror or error}; {remedy}") from error
