"""Write the rows of one split into shards, block by block."""

from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from shoal.data.manifest import Block, Shard
from shoal.data.shard import shard_schema


class _HashedFile:
    """A file that is only appended to and knows its size and xxh3_64 at the end."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("xb")
        self._hash = xxhash.xxh3_64()
        self.num_bytes = 0
        self.closed = False

    def write(self, data: pa.Buffer | bytes) -> int:
        written = self._file.write(data)
        self._hash.update(data)
        self.num_bytes += written
        return written

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()
        self.closed = True

    def digest(self) -> str:
        return self._hash.hexdigest()


class ShardWriter:
    """Collect rows into blocks of ``rows_per_block`` and blocks into shards of ``blocks_per_shard``.

    A context manager: leaving it writes what is left. Then ``shards`` has an entry per file, ``num_rows`` their rows.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        first_shard: int,
        row_bytes: int,
        rows_per_block: int,
        blocks_per_shard: int,
        class_names: list[str] | None,
    ) -> None:
        self.shards: list[Shard] = []
        self.num_rows = 0
        self._folder = folder
        self._split = split
        self._first_shard = first_shard
        self._schema = shard_schema(row_bytes)
        self._blocks_per_shard = blocks_per_shard
        self._labelled = class_names is not None
        self._images = np.empty((rows_per_block, row_bytes), np.uint8)
        self._labels = np.empty(rows_per_block, np.int32)
        self._filled = 0
        self._blocks: list[Block] = []
        self._file: _HashedFile | None = None
        self._writer: pa.RecordBatchFileWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._write_block()
                self._end_shard()
        finally:
            if self._file is not None:
                self._file.close()

    def add(self, images: NDArray[np.uint8], labels: NDArray[np.int32]) -> None:
        """Append images, uint8 [n, C, H, W], with labels, int32 [n]."""
        rows = images.reshape(len(images), self._images.shape[1])
        start = 0
        while start < len(rows):
            num = min(len(rows) - start, len(self._images) - self._filled)
            self._images[self._filled : self._filled + num] = rows[start : start + num]
            self._labels[self._filled : self._filled + num] = labels[start : start + num]
            self._filled += num
            start += num
            if self._filled == len(self._images):
                self._write_block()
        self.num_rows += len(rows)

    def _write_block(self) -> None:
        if self._filled == 0:
            return
        if self._writer is None:
            self._file = _HashedFile(self._folder / self._name())
            self._writer = pa.ipc.new_file(pa.PythonFile(self._file, "w"), self._schema)
        rows = self._images[: self._filled]
        column = pa.Array.from_buffers(self._schema.field(0).type, len(rows), [None, pa.py_buffer(rows)])
        self._writer.write_batch(pa.record_batch([column], schema=self._schema))
        self._blocks.append(Block(rows=len(rows), xxh3=xxhash.xxh3_64_hexdigest(rows.data), classes=self._histogram()))
        self._filled = 0
        if len(self._blocks) == self._blocks_per_shard:
            self._end_shard()

    def _end_shard(self) -> None:
        if self._writer is None or self._file is None:
            return
        self._writer.close()
        self._file.close()
        self.shards.append(
            Shard(
                path=self._name(),
                split=self._split,
                rows=sum(block.rows for block in self._blocks),
                bytes=self._file.num_bytes,
                xxh3=self._file.digest(),
                blocks=tuple(self._blocks),
            )
        )
        self._blocks = []
        self._file = self._writer = None

    def _name(self) -> str:
        return f"shard-{self._first_shard + len(self.shards):05d}.arrow"

    def _histogram(self) -> dict[int, int] | None:
        if not self._labelled:
            return None
        classes, counts = np.unique(self._labels[: self._filled], return_counts=True)
        return {int(c): int(n) for c, n in zip(classes, counts, strict=True) if c >= 0}
