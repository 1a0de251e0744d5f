"""One shard as the memory map that it is: an Arrow IPC file whose rows are read where they lie."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from shoal.data.manifest import Block, Shard
from shoal.errors import DataError

Bytes = NDArray[np.uint8]
Encoding = Literal["raw", "encoded"]

assert sys.byteorder == "little"  # Arrow's offsets and the labels are read where they lie


def shard_schema(row_bytes: int, encoding: Encoding = "raw") -> pa.Schema:
    """Return the schema of a shard: one column ``image``, of ``row_bytes`` bytes a row or of a whole file each."""
    kind = pa.binary(row_bytes) if encoding == "raw" else pa.large_binary()
    return pa.schema([pa.field("image", kind, nullable=False)])


def size_problem(file: Path, num_bytes: int) -> str | None:
    """Return what a look at the directory finds wrong with a file that should have ``num_bytes``, or None."""
    if not file.is_file():
        return "is missing"
    return length_problem(file.stat().st_size, num_bytes)


def length_problem(found: int, num_bytes: int) -> str | None:
    """Return what is wrong with a file of ``found`` bytes that should have ``num_bytes``, or None."""
    if found != num_bytes:
        return f"has {found:,} bytes where the manifest says {num_bytes:,}, so it was truncated or changed"
    return None


@dataclass(frozen=True, slots=True)
class BlockRows:
    """The rows of one block where they lie in memory, which the arrays keep alive.

    Attributes:
        content: uint8 [num_bytes]: raw rows, or files, one after another.
        starts: int64 [rows + 1]: the byte of ``content`` at which each file begins, then the end. None for raw rows.
        address: of the first byte of ``content``.
    """

    content: Bytes
    starts: NDArray[np.int64] | None = None
    address: int = field(init=False)

    def __post_init__(self) -> None:
        """Ask for the address once: NumPy takes its time to tell."""
        object.__setattr__(self, "address", self.content.ctypes.data)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of the payload."""
        return len(self.content) + (0 if self.starts is None else 8 * (len(self.starts) - 1))

    @classmethod
    def of_column(cls, column: pa.Array) -> Self:
        """Return the rows of the column ``image`` of a record batch, without a copy."""
        _, *buffers = column.buffers()
        content = _bytes(buffers[-1])
        if pa.types.is_fixed_size_binary(column.type):
            return cls(content[: len(column) * column.type.byte_width])
        offsets = np.frombuffer(buffers[0], np.int64, len(column) + 1)
        if offsets[0]:
            content, offsets = content[offsets[0] :], offsets - offsets[0]
        return cls(content[: offsets[-1]], offsets)

    @classmethod
    def of_payload(cls, payload: memoryview, rows: int, encoding: Encoding) -> Self:
        """Return the rows of a block's payload (see ``Block``), without a copy."""
        content = _bytes(payload)
        if encoding == "raw":
            return cls(content)
        lengths = content[: 8 * rows].view(np.int64)
        return cls(content[8 * rows :], np.concatenate([[0], np.cumsum(lengths)]))

    def payload(self) -> Iterator[Bytes]:
        """Yield the pieces of the payload: see ``Block``."""
        if self.starts is not None:
            yield np.diff(self.starts).view(np.uint8)
        yield self.content

    def problem(self, block: Block) -> str | None:
        """Return what tells these rows from the ones that the manifest lists, or None."""
        digest = xxhash.xxh3_64()
        for piece in self.payload():
            digest.update(piece.data)
        if digest.hexdigest() != block.xxh3:
            return f"has xxh3 {digest.hexdigest()} where the manifest says {block.xxh3}"
        return None

    def file(self, row: int) -> Bytes:
        """Return the file that an encoded row is."""
        assert self.starts is not None
        return self.content[self.starts[row] : self.starts[row + 1]]


class MappedShard:
    """A shard in memory without a copy.

    Errors are the ends of sentences about the file or the block: the caller knows which data set they belong to.
    """

    def __init__(self, folder: Path, shard: Shard, row_bytes: int, encoding: Encoding = "raw") -> None:
        """Map the file. Raises DataError for one that is missing, not an Arrow file, or of other blocks."""
        self.shard = shard
        path = folder / shard.path
        try:
            with pa.memory_map(str(path)) as file:  # closed at once: the buffer keeps the map, not the descriptor
                self._buffer = file.read_buffer()
            self._reader = pa.ipc.open_file(self._buffer)
        except (OSError, EOFError, pa.ArrowException) as error:
            raise DataError(f"is not readable as an Arrow file: {error}") from None
        check_batches(self._reader.schema, self._reader.num_record_batches, shard, shard_schema(row_bytes, encoding))

    def rows(self, block: int) -> BlockRows:
        """Return the rows of a block as they are, right or wrong. Raises DataError where there are none."""
        try:
            column = self._reader.get_batch(block).column(0)
        except (OSError, EOFError, pa.ArrowException) as error:
            raise DataError(f"is not readable as an Arrow record batch: {error}") from None
        return rows_of(column, self.shard.blocks[block])

    def block_problem(self, block: int) -> str | None:
        """Return what is wrong with a block, or None."""
        try:
            return self.rows(block).problem(self.shard.blocks[block])
        except DataError as error:
            return str(error)

    def file_digest(self) -> str:
        """Return the xxh3_64 of the whole file, in hex."""
        return xxhash.xxh3_64_hexdigest(self._buffer)


def check_batches(schema: pa.Schema, num_batches: int, shard: Shard, expected: pa.Schema) -> None:
    """Refuse, by DataError, a file whose schema or number of record batches is not that of the shard it is to be."""
    if schema != expected or num_batches != len(shard.blocks):
        raise DataError("does not hold the blocks that the manifest lists")


def rows_of(column: pa.Array, block: Block) -> BlockRows:
    """Return the rows of a column. Raises DataError where they are not as many, or not as long, as they must be."""
    if len(column) != block.rows:
        raise DataError(f"has {len(column):,} rows where the manifest says {block.rows:,}")
    try:
        column.validate(full=True)
    except pa.ArrowException as error:
        raise DataError(f"is not a valid Arrow array: {error}") from None
    return BlockRows.of_column(column)


def _bytes(buffer: pa.Buffer | memoryview | None) -> Bytes:
    return np.empty(0, np.uint8) if buffer is None else np.frombuffer(buffer, np.uint8)
