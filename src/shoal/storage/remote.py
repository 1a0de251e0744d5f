"""What can be done with an object of a store; asked again until the store answers."""

import mmap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from shoal.errors import StorageError
from shoal.files import atomic_file
from shoal.storage.filesystem import filesystem
from shoal.storage.local import in_words
from shoal.storage.patient_reader import PatientReader
from shoal.storage.retry import TransientError, until_it_answers
from shoal.storage.trouble import explained, no_bucket, no_object
from shoal.storage.uri import Uri

Result = TypeVar("Result")

READ_BYTES = 16 << 20
"""Of one request while a whole object is copied."""
WRITE_BYTES = 32 << 20
"""Given to the client at once, which sends it in parts side by side, before it is waited for."""


class RemoteObject:
    """The operations of a `Location` on an object store; `shoal.storage.location` describes them."""

    def __init__(self, uri: Uri) -> None:
        self.uri = uri

    def exists(self) -> bool:
        return bool(self._info().type != fs.FileType.NotFound)

    def size(self) -> int:
        info = self._info()
        if info.type == fs.FileType.Directory:
            raise StorageError(f"{self.uri} is a folder, not an object; name one in it")
        if info.type == fs.FileType.NotFound:
            raise self._missing()
        return int(info.size)

    def modified(self) -> float:
        written = self._info().mtime
        return written.timestamp() if written else 0.0

    def names(self) -> list[str]:
        return sorted(info.base_name for info in self._below(recursive=False))

    def files(self) -> dict[str, int]:
        start = len(self.uri.path) + 1
        found = (info for info in self._below(recursive=True) if info.type == fs.FileType.File)
        return dict(sorted((info.path[start:], int(info.size)) for info in found))

    def read_bytes(self) -> bytes:
        with self._reader() as reader:
            return bytes(reader.read())

    def read_range(self, offset: int, num_bytes: int) -> bytes:
        with self._reader() as reader:
            reader.seek(offset)
            return bytes(reader.read(num_bytes))

    def open_input(self) -> pa.NativeFile:
        return pa.PythonFile(self._reader(), mode="r")

    def write_bytes(self, data: memoryview) -> None:
        self._patiently(lambda store: _uninterrupted(partial(_write, store, self.uri.path, data)))

    def upload(self, source: Path) -> None:
        with in_words(source), source.open("rb") as file:
            if source.stat().st_size == 0:  # which cannot be mapped
                self.write_bytes(memoryview(b""))
                return
            self.write_bytes(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))

    def download(self, target: Path) -> None:
        def copy(store: fs.FileSystem) -> None:
            with self._reader() as reader, in_words(target), atomic_file(target) as file:
                before = self._info().mtime
                while chunk := reader.read(READ_BYTES):
                    file.write(chunk)
                if self._info().mtime != before:
                    raise TransientError("it was replaced while it was being read")

        self._patiently(copy)

    def delete(self) -> None:
        if not self.uri.key:
            raise StorageError(f"{self.uri}: a whole bucket is not deleted from here; name a folder in it")

        def remove(store: fs.FileSystem) -> None:
            info = store.get_file_info(self.uri.path)
            if info.type == fs.FileType.Directory:
                store.delete_dir(self.uri.path)
            elif info.type == fs.FileType.File:
                store.delete_file(self.uri.path)

        self._patiently(remove)

    def _info(self) -> fs.FileInfo:
        return self._patiently(lambda store: store.get_file_info(self.uri.path))

    def _below(self, *, recursive: bool) -> list[fs.FileInfo]:
        selector = fs.FileSelector(self.uri.path, recursive=recursive, allow_not_found=True)
        return self._patiently(lambda store: store.get_file_info(selector))

    def _reader(self) -> PatientReader:
        return PatientReader(self._patiently(lambda store: store.open_input_file(self.uri.path)), self.uri)

    def _patiently(self, action: Callable[[fs.FileSystem], Result]) -> Result:
        try:
            return until_it_answers(lambda: action(filesystem(self.uri)), str(self.uri))
        except FileNotFoundError:
            raise self._missing() from None
        except (OSError, TransientError, pa.ArrowInvalid) as error:
            raise explained(error, self.uri) from error

    def _missing(self) -> StorageError:
        """Say whether the object is missing or its whole bucket: the store answers 404 to both."""
        bucket = Uri(self.uri.scheme, self.uri.host, "", self.uri.query)
        return no_object(self.uri) if RemoteObject(bucket).exists() else no_bucket(self.uri)


def _write(store: fs.FileSystem, path: str, data: memoryview) -> None:
    stream = store.open_output_stream(path)
    try:
        for start in range(0, len(data), WRITE_BYTES):
            stream.write(data[start : start + WRITE_BYTES])
            stream.flush()
    except OSError:
        with suppress(OSError):
            stream.close()  # does not complete the object: the client knows which part failed
        raise
    stream.close()


def _uninterrupted(action: Callable[[], None]) -> None:
    """Carry out an action in a thread of its own, which an interrupt of this one does not reach.

    A stream that is left between two parts is closed when it is collected, which would make an object of the first.
    """
    with_one = ThreadPoolExecutor(1)
    done = with_one.submit(action)
    with_one.shutdown(wait=False)
    done.result()
