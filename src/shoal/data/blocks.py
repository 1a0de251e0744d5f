"""The blocks of a data set: read when they are first asked for, compared with the manifest, let go of in time."""

import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np

from shoal.data.manifest import Block, Manifest, Shard
from shoal.data.second_look import until_right
from shoal.data.shard import BlockRows, MappedShard, length_problem, size_problem
from shoal.errors import DamagedBlockError, DataError, StorageError

HELD_BYTES = 512 << 20
"""Of blocks that stay mapped for the next batch: two windows of 256 blocks of 1 MiB."""
PARALLEL_READS = 4


class BlockTable:
    """Where each block of a data set is: its first row and its number of rows, its shard and its index in that.

    ``first``, ``rows``, ``shard`` and ``index`` are int64 [num_blocks], in the order of the global ids.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._shards = manifest.shards
        in_shard = [len(shard.blocks) for shard in manifest.shards]
        self.shard = np.repeat(np.arange(len(in_shard)), in_shard)
        self.index = np.concatenate([np.arange(num) for num in in_shard])
        self.rows = np.array([block.rows for shard in manifest.shards for block in shard.blocks], np.int64)
        self.first = np.cumsum(self.rows) - self.rows

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self.rows)

    def entries(self, block: int) -> tuple[Shard, Block]:
        """Return what the manifest says of the shard and of the block."""
        shard = self._shards[self.shard[block]]
        return shard, shard.blocks[self.index[block]]

    def damaged(self, block: int, data_set: str, problem: str) -> DamagedBlockError:
        """Return the error for a block; ``problem`` goes on where "block 3 of … (rows … to …)" ends."""
        first, rows = int(self.first[block]), int(self.rows[block])
        shard = self._shards[self.shard[block]].path
        return DamagedBlockError(
            f"data set {data_set}: block {self.index[block]} of {shard} (rows {first:,} to {first + rows - 1:,}) "
            f"{problem}: it was damaged after the import; `shoal data verify {data_set}` lists all damage, "
            f"`shoal data repair {data_set}` mends it",
            shard=shard,
            block=block,
            first_row=first,
            rows=rows,
        )


class BlockSource(Protocol):
    """Where blocks come from.

    Attributes:
        remote: whether reading takes so long that it pays to read several at a time, and ahead.
    """

    remote: bool

    def read(self, block: int, *, again: bool) -> BlockRows:
        """Return the rows of a block, compared with its checksum where that was not done in this process yet.

        ``again`` says that they were wrong the last time: nothing that may have been the reason is used once more.
        Raises DataError that goes on where "block 3 of shard-00001.arrow" ends. Any thread may call it.
        """


class LocalShards:
    """Blocks in files of this machine. The maps, and so the addresses of what they hold, stay as long as this does."""

    remote = False

    def __init__(self, folder: Path, manifest: Manifest, table: BlockTable) -> None:
        self._folder = folder
        self._manifest = manifest
        self._table = table
        self._maps: dict[str, list[MappedShard]] = {}
        self._checked = np.zeros(len(table), np.bool_)
        self._lock = Lock()

    def read(self, block: int, *, again: bool) -> BlockRows:
        """Return the rows of a block where they lie in their file: see BlockSource."""
        shard, entry = self._table.entries(block)
        with self._lock:
            maps = self._maps.setdefault(shard.path, [])
            # Again from a fresh map: a repair puts another file in the place of the one that is mapped.
            mapped = self._map(shard) if again or not maps else maps[-1]
            if not maps:
                maps.append(mapped)
        if not self._checked[block]:
            self._refuse_shorter(shard)
        rows = mapped.rows(int(self._table.index[block]))
        if again or not self._checked[block]:
            if problem := rows.problem(entry):
                raise DataError(problem)
            self._checked[block] = True
        if again:
            with self._lock:
                maps.append(mapped)
                self._checked[self._table.shard == self._table.shard[block]] = False
        return rows

    def _refuse_shorter(self, shard: Shard) -> None:
        """Raise DataError for a file that was cut off since it was mapped: to touch what is gone ends the process."""
        with suppress(FileNotFoundError):  # the map keeps a file that was deleted
            if (problem := length_problem((self._folder / shard.path).stat().st_size, shard.bytes)) is not None:
                raise DataError(f"lies in a file that {problem}")

    def _map(self, shard: Shard) -> MappedShard:
        if problem := size_problem(self._folder / shard.path, shard.bytes):
            raise DataError(f"lies in a file that {problem}")
        try:
            return MappedShard(self._folder, shard, self._manifest.row_bytes, self._manifest.encoding)
        except DataError as error:
            raise DataError(f"lies in a file that {error}") from None


class Blocks:
    """Rows of blocks by their index in the data set, for any number of threads.

    The least recently used are let go of when those held are more than ``HELD_BYTES``; who got one may keep it.
    Several that are missing are read side by side from a remote source.
    """

    def __init__(self, name: str, table: BlockTable, source: BlockSource) -> None:
        self._name = name
        self._table = table
        self._source = source
        self._most_bytes = HELD_BYTES
        self._held_bytes = 0
        self._held: OrderedDict[int, BlockRows] = OrderedDict()
        self._reading: dict[int, Future[BlockRows]] = {}
        self._lock = Lock()

    def get(self, blocks: Sequence[int]) -> list[BlockRows]:
        """Return the rows of each of some blocks. Raises DamagedBlockError for one that is not what was imported."""
        found: dict[int, BlockRows] = {}
        missing = []
        with self._lock:
            for block in blocks:
                if block in self._held:
                    self._held.move_to_end(block)
                    found[block] = self._held[block]
                else:
                    missing.append(block)
            awaited = {block: self._begin(block) for block in missing if self._source.remote}
        wait(awaited.values())  # for all, before the first error: who gives up leaves no reading behind
        for future in awaited.values():
            if not future.cancelled() and (error := future.exception()) is not None:
                raise error
        for block in missing:
            given_up = block not in awaited or awaited[block].cancelled()
            found[block] = self._read(block) if given_up else awaited[block].result()
        return [found[block] for block in blocks]

    def prefetch(self, blocks: Iterable[int]) -> None:
        """Begin to read blocks, and return. What fails, fails again when it is asked for."""
        with self._lock:
            for block in blocks:
                if block not in self._held:
                    self._begin(block)

    def _begin(self, block: int) -> Future[BlockRows]:
        if block not in self._reading or self._reading[block].cancelled():
            self._reading[block] = _readers(os.getpid()).submit(self._read, block)
        return self._reading[block]

    def _read(self, block: int) -> BlockRows:
        rows = None
        try:
            rows = until_right(lambda again: self._source.read(block, again=again), remote=self._source.remote)
        except DataError as error:
            raise self._table.damaged(block, self._name, str(error)) from None
        except StorageError:
            with self._lock:  # a store that is gone would else be waited for once more for each block in the queue
                for queued in self._reading.values():
                    queued.cancel()
            raise
        finally:
            with self._lock:
                self._reading.pop(block, None)
                if rows is not None:
                    self._hold(block, rows)
        return rows

    def _hold(self, block: int, rows: BlockRows) -> None:
        replaced = self._held.pop(block, None)
        self._held[block] = rows
        self._held_bytes += rows.num_bytes - (0 if replaced is None else replaced.num_bytes)
        while self._held_bytes > self._most_bytes and len(self._held) > 1:
            self._held_bytes -= self._held.popitem(last=False)[1].num_bytes


@cache
def _readers(process: int) -> ThreadPoolExecutor:
    # Asked for by process: a forked child inherits the pool without its threads, and would wait for them for ever.
    return ThreadPoolExecutor(PARALLEL_READS, "shoal-blocks")
