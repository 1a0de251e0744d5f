"""Read a tar, gzipped or not, to its true end: nothing is extracted, and damage never passes for the end."""

import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from shoal.data.importers.image_files import printable
from shoal.errors import DataError

_GZIP = b"\x1f\x8b"


class _DamagedError(Exception):
    """What is wrong with a tar where tarfile would take it for finished."""


class _StrictTarInfo(tarfile.TarInfo):
    """A header that must be whole: at a damaged or a missing one tarfile ends without a word, as it does at the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros: the true end
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            raise _DamagedError("it ends without the blocks of zeros that a whole tar ends with") from None
        except tarfile.HeaderError as error:
            raise _DamagedError(str(error)) from None


def is_packed(path: Path) -> bool:
    """Return whether a tar is gzipped, and so can be read from its beginning only."""
    with path.open("rb") as file:
        return file.read(len(_GZIP)) == _GZIP


@contextmanager
def open_tar(path: Path, start: int = 0) -> Iterator[tarfile.TarFile]:
    """Yield a tar from byte ``start`` on, where a header must be, for ``members`` and ``content``.

    Damage that is met becomes a DataError that names the file.
    """
    try:
        with path.open("rb") as file:
            mode = "r:gz" if is_packed(path) else "r:"
            file.seek(start)
            with tarfile.open(fileobj=file, mode=mode, tarinfo=_StrictTarInfo) as archive:  # type: ignore[call-overload]
                yield archive
    except (OSError, EOFError, tarfile.TarError, zlib.error, _DamagedError) as error:
        raise DataError(f"{path} is not a whole tar file: {error}; fetch it again, or make it anew with tar") from None


def members(archive: tarfile.TarFile, stop: int | None = None) -> Iterator[tarfile.TarInfo]:
    """Yield the headers up to that at byte ``stop``, else all, and read on to the end of the file. Memory: one."""
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # it would remember every member there was
        if stop is not None and member.offset >= stop:
            return
        yield member
    assert archive.fileobj is not None
    while block := archive.fileobj.read(1 << 20):  # with gzip, the end has the checksum of all that came before
        if block.count(0) != len(block):
            raise _DamagedError("a block of zeros, which ends a tar, has something else behind it")


def content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Return the bytes of a member that is a file."""
    file = archive.extractfile(member)
    assert file is not None
    data = file.read()
    if len(data) != member.size:
        raise _DamagedError(f"member {printable(member.name)} is cut off")
    return data
