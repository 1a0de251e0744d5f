"""Blocks that are read no more: from some position on, rows of a healthy block take the place of theirs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.data.dataset import DataSet
from shoal.errors import DataError

Ids = NDArray[np.int64]

MAX_BLOCKS = 24
"""Of one run. More damage is worth a repair; and the state of the data's order stays under 1 KB."""


@dataclass(frozen=True)
class QuarantinedBlock:
    """A block in quarantine: where it lies, which rows of the split it holds, and since which position.

    ``block`` is its index in the shard; ``first_row`` a global id; ``since`` in samples of the whole world.
    """

    shard: str
    block: int
    first_row: int
    rows: int
    since: int

    def __str__(self) -> str:
        last = self.first_row + self.rows - 1
        return f"block {self.block} of {self.shard} (rows {self.first_row:,} to {last:,}) since sample {self.since:,}"


class Quarantine:
    """What of a split is in quarantine; a value, the same on all ranks.

    At positions from ``since`` on, row i of the block is replaced by row i (modulo its rows) of the next block of the
    split, in the order of the manifest and from the last one to the first, that is not in quarantine there. Positions
    stay what they are, and so does every other row.

    Attributes:
        entries: (index of the block in the data set, since which position), in the order of positions, then blocks.
    """

    def __init__(self, dataset: DataSet, split: str, entries: Iterable[Sequence[int]] = ()) -> None:
        """Raise DataError for a block that is not of the split, no healthy block left, or more than ``MAX_BLOCKS``."""
        self._dataset = dataset
        self._split = split
        since: dict[int, int] = {}
        for block, position in entries:
            since[block] = min(position, since.get(block, position))
        self.entries = sorted(since.items(), key=lambda entry: (entry[1], entry[0]))
        if not since:
            return
        self._first, self._rows = dataset.blocks(split).T
        rows = [block.rows for shard in dataset.manifest.shards for block in shard.blocks]
        self._offset = int(np.searchsorted(np.cumsum(rows), self._first[0], side="right"))  # of the split's first block
        outside = [block for block in since if not 0 <= block - self._offset < len(self._first)]
        if outside:
            raise DataError(f"block {outside[0]} is in quarantine but not in split '{split}'; use another checkpoint")
        if len(since) == len(self._first):
            raise DataError(f"all blocks of split '{split}' of {dataset.location} are damaged; {REMEDY}")
        if len(since) > MAX_BLOCKS:
            raise DataError(
                f"{len(since)} blocks of split '{split}' of {dataset.location} are damaged, and a run does without"
                f" {MAX_BLOCKS} at most; {REMEDY}"
            )

    def having(self, blocks: Iterable[int], position: int) -> "Quarantine":
        """Return this and more blocks in quarantine from ``position`` on."""
        return Quarantine(self._dataset, self._split, [*self.entries, *((block, position) for block in blocks)])

    def replace(self, ids: Ids, position: int) -> Ids:
        """Return the rows to read at ``position`` where the order asks for ``ids``, int64 [n]."""
        closed = {block - self._offset for block, since in self.entries if since <= position}
        if not closed:
            return ids
        blocks = np.searchsorted(self._first, ids, side="right") - 1
        replaced = ids.copy()
        for block in closed.intersection(np.unique(blocks).tolist()):
            healthy = (block + 1) % len(self._first)
            while healthy in closed:
                healthy = (healthy + 1) % len(self._first)
            here = blocks == block
            replaced[here] = self._first[healthy] + (ids[here] - self._first[block]) % self._rows[healthy]
        return replaced

    def blocks(self) -> list[QuarantinedBlock]:
        """Return what is in quarantine, in the order of ``entries``."""
        if not self.entries:
            return []
        places = [(shard.path, index) for shard in self._dataset.manifest.shards for index in range(len(shard.blocks))]
        found = []
        for block, since in self.entries:
            at = block - self._offset
            found.append(QuarantinedBlock(*places[block], int(self._first[at]), int(self._rows[at]), since))
        return found


REMEDY = "`shoal data verify` lists all damage, `shoal data repair` mends it"
