"""A shard that is read instead of mapped: to look at one that may be damaged, and at one that is far away."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from shoal.data.manifest import Manifest, Shard
from shoal.data.remote import read_spans
from shoal.data.shard import length_problem, rows_of, shard_schema
from shoal.errors import DataError, MissingError, StorageError
from shoal.storage.location import Location

PIECE_BYTES = 1 << 20
"""Of what lies between the blocks: little, unless the footer is wrong."""


class ShardFile:
    """The blocks of a shard in its file or object. Memory: one block.

    Where a disk fails to read, or a file is cut off meanwhile, this is a DataError; to touch a map of it would end the
    process. All errors are the ends of sentences about the file or the block.
    """

    def __init__(self, folder: Location, shard: Shard, manifest: Manifest) -> None:
        """Open it and find the blocks. Raises DataError for a file that is missing, or of another size or layout."""
        self.shard = shard
        self._schema = shard_schema(manifest.row_bytes, manifest.encoding)
        place = folder / shard.path
        try:
            if problem := length_problem(place.size(), shard.bytes):
                raise DataError(problem)
            self._file = place.open_input()
        except MissingError:
            raise DataError("is missing") from None
        except StorageError as error:
            if folder.local is not None:
                raise DataError(f"cannot be read: {error}") from None
            raise  # a store that refuses or does not answer says nothing of the object
        with self._reading():
            self._spans: list[tuple[int, int]] = [(start, num) for start, num in read_spans(self._file, shard).tolist()]

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def pieces(self) -> Iterator[tuple[int | None, bytes]]:
        """Yield all bytes of the file in their order: each block with its index, and with None what is between them.

        Raises DataError for blocks that overlap.
        """
        end = 0
        for index, (start, num_bytes) in enumerate(self._spans):
            if start < end:
                raise DataError("is not readable as an Arrow file: its blocks overlap")
            yield from self._between(end, start)
            yield index, self._read(start, num_bytes)
            end = start + num_bytes
        yield from self._between(end, self.shard.bytes)

    def block(self, index: int) -> pa.Array:
        """Return the column of a block. Raises DataError where it is not what the manifest lists."""
        return self.column(index, self._read(*self._spans[index]))

    def column(self, index: int, message: bytes) -> pa.Array:
        """Return the column of a block that was read already: see ``block``."""
        entry = self.shard.blocks[index]
        try:
            column = pa.ipc.read_record_batch(pa.py_buffer(message), self._schema).column(0)
        except (OSError, EOFError, pa.ArrowException) as error:
            raise DataError(f"is not readable as an Arrow record batch: {error}") from None
        if problem := rows_of(column, entry).problem(entry):
            raise DataError(problem)
        return column

    def _between(self, start: int, stop: int) -> Iterator[tuple[None, bytes]]:
        for first in range(start, stop, PIECE_BYTES):
            yield None, self._read(first, min(PIECE_BYTES, stop - first))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}") from None

    def _read(self, start: int, num_bytes: int) -> bytes:
        with self._reading():
            data: bytes = self._file.read_at(num_bytes, start)
        if len(data) != num_bytes:
            raise DataError(f"ends before byte {start + num_bytes:,}, so it was truncated meanwhile")
        return data
