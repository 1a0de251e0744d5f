"""A remote object as a file whose reads outlast the faults of its store."""

import io

import pyarrow as pa

from shoal.storage.retry import TransientError, until_it_answers
from shoal.storage.trouble import explained
from shoal.storage.uri import Uri


class PatientReader(io.RawIOBase):
    """A readable, seekable file; every read is one range request, asked again while its fault may pass.

    Raises `StorageError` from `read`. Not for two threads at once.
    """

    def __init__(self, file: pa.NativeFile, uri: Uri) -> None:
        self._file = file
        self._uri = uri
        self._position = 0
        self._size: int = file.size()

    def read(self, num_bytes: int | None = -1) -> bytes:
        """Return the next ``num_bytes``, or all that is left; fewer only at the end of the object."""
        left = max(0, self._size - self._position)
        wanted = left if num_bytes is None or num_bytes < 0 else min(num_bytes, left)
        if wanted == 0:
            return b""

        def ask() -> bytes:
            got: bytes = self._file.read_at(wanted, self._position)
            if len(got) != wanted:
                raise TransientError(f"{len(got):,} bytes came where {wanted:,} were asked for")
            return got

        try:
            got = until_it_answers(ask, str(self._uri))
        except (OSError, TransientError, pa.ArrowInvalid) as error:
            raise explained(error, self._uri) from error
        self._position += wanted
        return got

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position, counted from the start, from here or from the end."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        """Return the position of the next read."""
        return self._position

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Let go of the object."""
        if not self.closed:
            self._file.close()
        super().close()
