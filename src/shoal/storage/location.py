"""A place where bytes lie: a local path or the URI of an object store, with the same few operations on both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.storage.uri import Uri, parse

if TYPE_CHECKING:
    import pyarrow as pa

    from shoal.storage.local import LocalPath
    from shoal.storage.remote import RemoteObject


@dataclass(frozen=True)
class Location:
    """A file, a folder, or nothing yet.

    All operations raise `StorageError` with the place, what is wrong and what to do; those that need something to be
    there raise its subclass `MissingError`. A store that does not answer is asked again: `shoal.storage.retry`.

    A body that ends before its announced length is noticed and read again. One that is announced too short is not:
    Arrow then returns memory of the length asked for. So whatever is kept on a store carries a checksum of its own.

    Attributes:
        uri: an absolute local path, or ``s3://bucket/key?options`` (also gs://, abfs://, hdfs://) in its normal form.
            Use `parse` to make one.
    """

    uri: str

    @classmethod
    def parse(cls, place: str | Path | Location) -> Location:
        """Return the location that a path or a URI names; ``~``, relative paths and file:// become absolute paths.

        Raises:
            StorageError: an unknown scheme, no bucket, or credentials inside the URI.
        """
        return place if isinstance(place, Location) else cls(str(parse(str(place))))

    @property
    def local(self) -> Path | None:
        """The path of a local file or folder; None on an object store."""
        return None if "://" in self.uri else Path(self.uri)

    @property
    def name(self) -> str:
        """The last part of the path; of a bucket, its name."""
        return self._parsed.name

    @property
    def parent(self) -> Location:
        """The folder that this is in; a bucket is its own."""
        return Location(str(self._parsed.parent))

    def __truediv__(self, name: str) -> Location:
        """Return what has this name, or relative path, in this folder."""
        return Location(str(self._parsed / name))

    def __str__(self) -> str:
        """Return the URI."""
        return self.uri

    def exists(self) -> bool:
        """Return whether there is a file or a folder; a folder of an object store exists while anything is in it."""
        return self._place.exists()

    def size(self) -> int:
        """Return the bytes of a file."""
        return self._place.size()

    def modified(self) -> float:
        """Return when a file was last written, in seconds since 1970; 0 if it does not exist."""
        return self._place.modified()

    def list(self) -> list[Location]:
        """Return the files and folders directly in this folder, by name; none if it does not exist."""
        return [self / name for name in self._place.names()]

    def files(self) -> dict[str, int]:
        """Return the size of every file below this folder at any depth, by its relative path, in one listing."""
        return self._place.files()

    def read_bytes(self) -> bytes:
        """Return the whole of a file."""
        return self._place.read_bytes()

    def read_range(self, offset: int, num_bytes: int) -> bytes:
        """Return ``num_bytes`` from ``offset`` on, fewer only where the file ends."""
        return self._place.read_range(offset, num_bytes)

    def open_input(self) -> pa.NativeFile:
        """Open a file for random access. Every read of a remote one is a range request, and patient by itself.

        For several threads at once use one such file each, or its `read_at`.
        """
        return self._place.open_input()

    def write_bytes(self, data: bytes | bytearray | memoryview) -> None:
        """Replace or create a file, with its folders; it is whole or absent, whatever happens meanwhile."""
        self._place.write_bytes(memoryview(data).cast("B"))

    def upload(self, source: Path) -> None:
        """Replace or create this file with the bytes of a local one; whole or absent."""
        self._place.upload(source)

    def download(self, target: Path) -> None:
        """Copy this file to a local path; whole or absent."""
        self._place.download(target)

    def delete(self) -> None:
        """Remove a file, or a folder with all that is in it; nothing there is no error."""
        self._place.delete()

    @property
    def _parsed(self) -> Path | Uri:
        return parse(self.uri)

    @property
    def _place(self) -> LocalPath | RemoteObject:
        # Imported here, since most of who names a place never looks into it, and pyarrow takes 0.2 s.
        from shoal.storage.local import LocalPath
        from shoal.storage.remote import RemoteObject

        place = self._parsed
        return LocalPath(place) if isinstance(place, Path) else RemoteObject(place)
