"""One shard as the memory map that it is: an Arrow IPC file whose rows are read where they lie."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from shoal.data.manifest import Shard
from shoal.errors import DataError

Bytes = NDArray[np.uint8]


def shard_schema(row_bytes: int) -> pa.Schema:
    """Return the schema of a shard: one column ``image`` of ``row_bytes`` bytes a row."""
    return pa.schema([pa.field("image", pa.binary(row_bytes), nullable=False)])


def size_problem(file: Path, num_bytes: int) -> str | None:
    """Return what a look at the directory finds wrong with a file that should have ``num_bytes``, or None."""
    if not file.is_file():
        return "is missing"
    found = file.stat().st_size
    if found != num_bytes:
        return f"has {found:,} bytes where the manifest says {num_bytes:,}, so it was truncated or changed"
    return None


class MappedShard:
    """A shard in memory without a copy.

    ``rows_at[i]`` is the row, as one opaque item, that starts at byte i of the file: one fancy index gathers the rows
    of many blocks. Row r of block b starts at byte ``offsets[b] + r * row_bytes``.
    """

    def __init__(self, folder: Path, shard: Shard, row_bytes: int) -> None:
        path = folder / shard.path
        try:
            with pa.memory_map(str(path)) as file:  # closed at once: the buffer keeps the map, not the descriptor
                buffer = file.read_buffer()
            reader = pa.ipc.open_file(buffer)
            columns = [reader.get_batch(i).column(0) for i in range(reader.num_record_batches)]
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} is not readable as an Arrow file: {error}; import the data again") from None
        rows = [block.rows for block in shard.blocks]
        if reader.schema != shard_schema(row_bytes) or [len(column) for column in columns] != rows:
            raise DataError(f"{path} does not hold the blocks that the manifest lists; import the data again")
        self.shard = shard
        self.row_bytes = row_bytes
        self._bytes: Bytes = np.frombuffer(buffer, np.uint8)
        starts = len(self._bytes) - row_bytes + 1
        self.rows_at: NDArray[np.void] = np.ndarray((starts,), f"V{row_bytes}", buffer, strides=(1,))
        self.offsets = np.array([column.buffers()[1].address - buffer.address for column in columns], np.int64)

    def block_problem(self, block: int) -> str | None:
        """Return what is wrong with the bytes of a block (their checksum), or None."""
        entry = self.shard.blocks[block]
        start = self.offsets[block]
        digest = xxhash.xxh3_64_hexdigest(self._bytes[start : start + entry.rows * self.row_bytes].data)
        if digest != entry.xxh3:
            return f"has xxh3 {digest} where the manifest says {entry.xxh3}"
        return None

    def file_digest(self) -> str:
        """Return the xxh3_64 of the whole file, in hex."""
        return xxhash.xxh3_64_hexdigest(self._bytes.data)
