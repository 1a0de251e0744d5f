"""Write the rows of one split into shards, block by block."""

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from shoal.data.block_buffer import BlockBuffer, Images, images_of
from shoal.data.manifest import Block, Shard

ARROW_MAGIC_BYTES = 8
"""In a file they come before the stream of record batches."""


class _HashedFile:
    """A file that is only appended to and knows its size and xxh3_64 at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb")
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

    def sync(self) -> None:
        _sync(self._file)

    def close(self) -> None:
        self._file.close()
        self.closed = True

    def digest(self) -> str:
        return self._hash.hexdigest()


@dataclass(frozen=True)
class Saved:
    """The rows of a split that are on the disk for good, but in no finished shard.

    Attributes:
        num_rows: of the split, those in finished shards included.
        file: the unfinished shard, None where there is none yet.
        num_blocks: whole blocks in it.
        tail: the file that holds the rows after those, None where there are none.
    """

    num_rows: int = 0
    file: str | None = None
    num_blocks: int = 0
    tail: str | None = None


class ShardWriter:
    """Collect rows into blocks of ``rows_per_block`` and blocks into shards of about ``shard_bytes``.

    A context manager: leaving it writes what is left. Then ``shards`` has an entry per file, ``num_rows`` their rows,
    and the file ``labels_path(…)`` their labels; to sync them is up to the caller. With ``attempt``, shards are called
    otherwise than those of the other attempts that ``restore`` may go on from.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        split: str,
        buffer: BlockBuffer,
        *,
        rows_per_block: int,
        shard_bytes: int,
        labelled: bool,
        attempt: int = 0,
    ) -> None:
        self.shards: list[Shard] = []
        self.num_rows = 0
        self._folder = folder
        self._name = f"{stem}-{attempt}"
        self._split = split
        self._buffer = buffer
        self._rows_per_block = rows_per_block
        self._shard_bytes = shard_bytes
        self._block_labels = np.empty(rows_per_block, np.int32)
        self._blocks: list[Block] = []
        self._payload_bytes = 0
        self._file: _HashedFile | None = None
        self._writer: pa.RecordBatchFileWriter | None = None
        self._num_saved = 0
        self._label_file: BinaryIO | None = None
        if labelled:
            self._label_file = labels_path(folder, stem).open("a+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            if self._label_file is not None:
                stack.enter_context(self._label_file)
            stack.callback(self._abandon)
            if error is None:
                self._write_block()
                self._end_shard()

    def add(self, images: Images, labels: NDArray[np.int32]) -> None:
        """Append images with their labels, int32 [n]."""
        if self._label_file is not None:
            self._label_file.write(labels.astype("<i4").tobytes())
        self._add(images, labels)

    def save(self) -> Saved:
        """Put all rows of no finished shard on the disk for good, and say where they are."""
        if self._label_file is not None:
            _sync(self._label_file)
        if self._file is not None:
            self._file.sync()
        tail = None
        if len(self._buffer):
            tail = f"{self._name}-tail-{self._num_saved:05d}.part"
            self._num_saved += 1
            with (self._folder / tail).open("wb") as file:
                with pa.ipc.new_file(pa.PythonFile(file, "w"), self._buffer.schema) as writer:
                    writer.write_batch(self._batch())
                _sync(file)
        return Saved(self.num_rows, None if self._file is None else self._file.path.name, len(self._blocks), tail)

    def restore(self, saved: Saved, shards: list[Shard]) -> None:
        """Go on where another attempt saved its rows, with the ``shards`` that it had finished."""
        self.shards = list(shards)
        self.num_rows = sum(shard.rows for shard in shards)
        labels = np.full(saved.num_rows, -1, np.int32)
        if self._label_file is not None:
            self._label_file.truncate(4 * saved.num_rows)
            self._label_file.seek(0)
            labels = np.frombuffer(self._label_file.read(), "<i4")
        for name, num_blocks in ((saved.file, saved.num_blocks), (saved.tail, 1)):
            if name is not None:
                with pa.OSFile(str(self._folder / name)) as file:
                    file.seek(ARROW_MAGIC_BYTES)
                    reader = pa.ipc.open_stream(file)
                    for _ in range(num_blocks):
                        images = images_of(reader.read_next_batch().column(0))
                        self._add(images, labels[self.num_rows : self.num_rows + len(images)])
        assert self.num_rows == saved.num_rows

    def _add(self, images: Images, labels: NDArray[np.int32]) -> None:
        start = 0
        while start < len(images):
            filled = len(self._buffer)
            stop = min(len(images), start + self._rows_per_block - filled)
            self._buffer.add(images, start, stop)
            self._block_labels[filled : filled + stop - start] = labels[start:stop]
            self.num_rows += stop - start
            start = stop
            if len(self._buffer) == self._rows_per_block:
                self._write_block()

    def _write_block(self) -> None:
        rows = len(self._buffer)
        if rows == 0:
            return
        if self._writer is None:
            self._file = _HashedFile(self._folder / f"{self._name}-{len(self.shards):05d}.part")
            self._writer = pa.ipc.new_file(pa.PythonFile(self._file, "w"), self._buffer.schema)
        self._writer.write_batch(self._batch())
        self._blocks.append(Block(rows=rows, xxh3=self._buffer.digest(), classes=self._histogram(rows)))
        num_bytes = self._buffer.num_bytes()
        self._payload_bytes += num_bytes
        self._buffer.clear()
        if self._payload_bytes + num_bytes > self._shard_bytes:  # one more like it would be too many
            self._end_shard()

    def _batch(self) -> pa.RecordBatch:
        return pa.record_batch([self._buffer.column()], schema=self._buffer.schema)

    def _end_shard(self) -> None:
        if self._writer is None or self._file is None:
            return
        self._writer.close()
        self._file.close()
        self.shards.append(
            Shard(
                path=self._file.path.name,
                split=self._split,
                rows=sum(block.rows for block in self._blocks),
                bytes=self._file.num_bytes,
                xxh3=self._file.digest(),
                blocks=tuple(self._blocks),
            )
        )
        self._blocks, self._payload_bytes = [], 0
        self._file = self._writer = None

    def _abandon(self) -> None:
        if self._file is not None:
            self._file.close()

    def _histogram(self, rows: int) -> dict[int, int] | None:
        if self._label_file is None:
            return None
        classes, counts = np.unique(self._block_labels[:rows], return_counts=True)
        return {int(c): int(n) for c, n in zip(classes, counts, strict=True) if c >= 0}


def labels_path(folder: Path, stem: str) -> Path:
    """Return the file that collects the labels of a split, int32, until the data set is sealed."""
    return folder / f"{stem}.labels"


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
