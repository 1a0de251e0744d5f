"""Rows on their way into a block: collected, counted, hashed as the manifest says, handed over as an Arrow column."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from shoal.data.shard import shard_schema

Images = NDArray[np.uint8] | Sequence[bytes]
"""Pixels, uint8 [n, C, H, W], or n PNG or JPEG files."""


class BlockBuffer(Protocol):
    """The rows of the block that is being filled.

    Attributes:
        schema: of the shard.
    """

    schema: pa.Schema

    def __len__(self) -> int:
        """Return the number of rows."""

    def add(self, images: Images, start: int, stop: int) -> None:
        """Append rows ``start .. stop - 1`` of ``images``."""

    def column(self) -> pa.Array:
        """Return the rows as a column; valid until the next ``add`` or ``clear``."""

    def digest(self) -> str:
        """Return the xxh3_64 of the payload (see ``manifest.Block``), in hex."""

    def num_bytes(self) -> int:
        """Return the bytes of the rows."""

    def clear(self) -> None:
        """Begin the next block."""


class RawBuffer:
    """Rows of pixels, in memory for one whole block."""

    def __init__(self, rows_per_block: int, row_bytes: int) -> None:
        self.schema = shard_schema(row_bytes)
        self._rows = np.empty((rows_per_block, row_bytes), np.uint8)
        self._filled = 0

    def __len__(self) -> int:
        return self._filled

    def add(self, images: Images, start: int, stop: int) -> None:
        part = np.asarray(images[start:stop])
        self._rows[self._filled : self._filled + len(part)] = part.reshape(len(part), self._rows.shape[1])
        self._filled += len(part)

    def column(self) -> pa.Array:
        return pa.Array.from_buffers(self.schema.field(0).type, self._filled, [None, pa.py_buffer(self._block())])

    def digest(self) -> str:
        return xxhash.xxh3_64_hexdigest(self._block().data)

    def num_bytes(self) -> int:
        return self._block().nbytes

    def clear(self) -> None:
        self._filled = 0

    def _block(self) -> NDArray[np.uint8]:
        return self._rows[: self._filled]


class EncodedBuffer:
    """Rows that are files of any length."""

    def __init__(self, row_bytes: int) -> None:
        self.schema = shard_schema(row_bytes, "encoded")
        self._files: list[bytes] = []

    def __len__(self) -> int:
        return len(self._files)

    def add(self, images: Images, start: int, stop: int) -> None:
        self._files += [bytes(file) for file in images[start:stop]]

    def column(self) -> pa.Array:
        offsets = np.concatenate([[0], np.cumsum(self._lengths())]).astype(np.int64)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(self._files))]
        return pa.Array.from_buffers(self.schema.field(0).type, len(self._files), buffers)

    def digest(self) -> str:
        payload = xxhash.xxh3_64(self._lengths().astype("<i8").tobytes())
        for file in self._files:
            payload.update(file)
        return payload.hexdigest()

    def num_bytes(self) -> int:
        return int(self._lengths().sum())

    def clear(self) -> None:
        self._files = []

    def _lengths(self) -> NDArray[np.int64]:
        return np.array([len(file) for file in self._files], np.int64)


def images_of(column: pa.Array) -> Images:
    """Return the rows of such a column again: pixels, uint8 [n, row_bytes], or files."""
    if pa.types.is_fixed_size_binary(column.type):
        width = column.type.byte_width
        return np.frombuffer(column.buffers()[1], np.uint8, len(column) * width).reshape(-1, width)
    files: list[bytes] = column.to_pylist()
    return files
