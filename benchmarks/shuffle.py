"""Print how well windows of different sizes shuffle, by the arithmetic of the order alone: no image is read.

A window is what a reader has at hand at a time, so a larger one shuffles better and costs more: see readers_cost.py for
what it costs.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from shoal.data import Order
from shoal.data.dataset_writer import BLOCK_BYTES

WINDOWS = (1, 4, 16, 64, 256)
BATCH = 256
SHARD_BLOCKS = 64
BATCHES_AT_ONCE = 1_000
"""Keeps the counts of all classes by batch small."""

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """A split whose rows are sorted by class, as they come out of a folder with a folder for each class.

    Attributes:
        row_bytes: of an image, which says how many rows there are to a block of 1 MiB.
        epochs: pairs of consecutive epochs that are compared.
    """

    label: str
    rows: int
    row_bytes: int
    classes: int
    epochs: int

    @property
    def block_rows(self) -> int:
        """The rows of a block."""
        return BLOCK_BYTES // self.row_bytes

    def blocks(self) -> Ids:
        """Return first id and rows of each block, int64 [num_blocks, 2]."""
        first = np.arange(0, self.rows, self.block_rows)
        return np.stack([first, np.minimum(self.block_rows, self.rows - first)], axis=1)


SPLITS = (
    Rows("60,000 images of 28x28x1, 10 classes", 60_000, 28 * 28, 10, 200),
    Rows("10,000,000 images of 28x28x1, 1,000 classes", 10_000_000, 28 * 28, 1_000, 2),
    Rows("10,000,000 images of 64x64x3, 1,000 classes", 10_000_000, 64 * 64 * 3, 1_000, 2),
)


@dataclass(frozen=True)
class Quality:
    """What a window makes of a split, over whole epochs.

    Attributes:
        correlation: rank correlation of a row's positions in consecutive epochs, the mean over pairs of epochs.
        magnitude: the mean of its magnitude.
        shard_run: the longest run of rows that are all of one shard.
        block_run: the same of one block.
        blocks: different blocks in a batch, the mean.
        classes: different classes in a batch, the mean.
        largest: the share of a batch that its most frequent class has, the mean.
    """

    correlation: float
    magnitude: float
    shard_run: int
    block_run: int
    blocks: float
    classes: float
    largest: float


def judge(split: Rows, window_blocks: int | None) -> Quality:
    """Measure a window, or with None what a permutation of all rows would give."""
    generator = np.random.default_rng(0)
    order = None if window_blocks is None else Order("benchmark", 0, split.blocks(), window_blocks)
    correlations, shard_runs, block_runs = [], [], []
    before: Ids | None = None
    for epoch in range(split.epochs + 1):
        if order is None:
            ids = generator.permutation(split.rows)
        else:
            ids = order.ids(epoch * split.rows, (epoch + 1) * split.rows)
        places = np.empty_like(ids)
        places[ids] = np.arange(len(ids))
        if before is not None:
            correlations.append(rank_correlation(before, places))
        before = places
        shard_runs.append(longest_run(ids // (split.block_rows * SHARD_BLOCKS)))
        block_runs.append(longest_run(ids // split.block_rows))
    classes, largest = batches_of(ids * split.classes // split.rows)
    blocks, _ = batches_of(ids // split.block_rows)
    return Quality(
        correlation=mean(correlations),
        magnitude=mean(map(abs, correlations)),
        shard_run=max(shard_runs),
        block_run=max(block_runs),
        blocks=blocks,
        classes=classes,
        largest=largest,
    )


def rank_correlation(one: Ids, other: Ids) -> float:
    """Return Spearman's coefficient of two permutations of 0 .. n - 1: how alike two orders are, from -1 to 1."""
    num = len(one)
    distance = float(((one - other).astype(np.float64) ** 2).sum())
    return 1 - 6 * distance / (num * (num**2 - 1.0))


def longest_run(groups: Ids) -> int:
    """Return how many neighbours at most are of one group."""
    starts = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1], [True]]))
    return int(np.diff(starts).max())


def batches_of(groups: Ids) -> tuple[float, float]:
    """Return, as means over all whole batches, the number of different groups and the share of the largest one."""
    whole = groups[: len(groups) // BATCH * BATCH].reshape(-1, BATCH)
    different, largest = [], []
    for first in range(0, len(whole), BATCHES_AT_ONCE):
        part = np.sort(whole[first : first + BATCHES_AT_ONCE], axis=1)
        starts = np.ones(part.shape, np.bool_)
        starts[:, 1:] = part[:, 1:] != part[:, :-1]
        different.append(starts.sum(axis=1))
        # A batch starts a group of its own, so that all batches' groups can be laid end to end.
        begins = np.flatnonzero(starts)
        sizes = np.diff(begins, append=part.size)
        largest.append(np.maximum.reduceat(sizes, np.searchsorted(begins, np.arange(0, part.size, BATCH))))
    return float(np.concatenate(different).mean()), float(np.concatenate(largest).mean() / BATCH)


def table(split: Rows, windows: list[int]) -> Iterator[str]:
    """Yield a Markdown table, a row for each window and one for a permutation of all rows."""
    blocks = f"{len(split.blocks()):,} blocks of {split.block_rows:,} rows"
    yield f"{split.label}, sorted by class: {blocks}, {SHARD_BLOCKS} blocks to a shard."
    yield ""
    yield (
        "| window, blocks | rows | rank correlation | its magnitude | longest run of one shard | of one block "
        "| blocks in a batch | classes in a batch | its most frequent class |"
    )
    yield "|---:|" + "---:|" * 8
    for window in (*windows, None):
        found = judge(split, window)
        rows = split.rows if window is None else min(split.rows, window * split.block_rows)
        cells = [
            "all" if window is None else f"{window}",
            f"{rows:,}",
            f"{found.correlation:+.4f}",
            f"{found.magnitude:.4f}",
            f"{found.shard_run:,}",
            f"{found.block_run:,}",
            f"{found.blocks:.1f}",
            f"{found.classes:.1f}",
            f"{found.largest:.0%}",
        ]
        yield "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print a table for each split."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, nargs="+", default=list(WINDOWS), help="sizes, in blocks")
    parser.add_argument("--small", action="store_true", help="only the split of 60,000 rows")
    asked = parser.parse_args()
    if min(asked.windows) < 1:
        parser.error(f"--windows {min(asked.windows)} must be at least 1")
    print(f"Batches of {BATCH}. The last row of a table is a permutation of all rows.\n")
    for split in SPLITS[:1] if asked.small else SPLITS:
        for line in table(split, asked.windows):
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
