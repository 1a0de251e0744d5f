"""Read every byte of a data set and say exactly what is wrong with it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shoal.data.labels import hash_labels, read_labels
from shoal.data.manifest import MANIFEST_NAME, Manifest, Shard, load_manifest, parse_manifest
from shoal.data.shard import MappedShard, size_problem
from shoal.data.write import Progress
from shoal.errors import DataError


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the file, the block in it and that block's global rows (first, last) if known."""

    file: str
    what: str
    block: int | None = None
    rows: tuple[int, int] | None = None

    def __str__(self) -> str:
        place = self.file
        if self.block is not None:
            place += f", block {self.block}"
        if self.rows is not None:
            place += f", rows {self.rows[0]:,} to {self.rows[1]:,}"
        return f"{place}: {self.what}"


def verify(path: Path, progress: Progress | None = None) -> list[Problem]:
    """Compare the data set directory ``path`` with all that its manifest promises; an empty list means it is whole.

    Checks sizes, file checksums, every block, and the labels against the histograms; damage does not stop it.
    ``progress`` gets the number of rows done. Raises DataError only where there is no manifest that can be read.
    """
    manifest = parse_manifest(path)
    return list(_problems(path, manifest, progress))


def _problems(path: Path, manifest: Manifest, progress: Progress | None) -> Iterator[Problem]:
    try:
        load_manifest(path)
    except DataError as error:
        yield Problem(MANIFEST_NAME, str(error))
    first = 0
    for shard in manifest.shards:
        yield from _shard_problems(path, manifest, shard, first)
        first += shard.rows
        if progress is not None:
            progress(first)
    if manifest.labels is not None:
        try:
            labels = read_labels(path, manifest)
        except DataError as error:
            yield Problem(manifest.labels.path, str(error))
        else:
            yield from _label_problems(manifest, labels)


def _shard_problems(path: Path, manifest: Manifest, shard: Shard, first: int) -> Iterator[Problem]:
    """Yield what is wrong with one shard, whose first global row is ``first``."""
    everything = (first, first + shard.rows - 1)
    if size := size_problem(path / shard.path, shard.bytes):
        yield Problem(shard.path, size, rows=everything)
        return
    try:
        mapped = MappedShard(path, shard, manifest.row_bytes)
    except DataError as error:
        yield Problem(shard.path, str(error), rows=everything)
        return
    blocks_are_whole = True
    for index, block in enumerate(shard.blocks):
        if what := mapped.block_problem(index):
            blocks_are_whole = False
            yield Problem(shard.path, what, index, (first, first + block.rows - 1))
        first += block.rows
    if blocks_are_whole and mapped.file_digest() != shard.xxh3:
        yield Problem(shard.path, "the rows are right, but bytes between the blocks were changed")


def _label_problems(manifest: Manifest, labels: NDArray[np.int32]) -> Iterator[Problem]:
    """Yield where the labels contradict the manifest although their file is the one it lists."""
    assert manifest.labels is not None
    name = manifest.labels.path
    if len(labels) != manifest.num_rows or hash_labels(labels) != manifest.labels.rows_xxh3:
        yield Problem(name, f"its {len(labels):,} labels are not the {manifest.num_rows:,} that the manifest lists")
        return
    first = 0
    for index, block in enumerate(block for shard in manifest.shards for block in shard.blocks):
        classes, counts = np.unique(labels[first : first + block.rows], return_counts=True)
        found = {int(c): int(n) for c, n in zip(classes, counts, strict=True) if c >= 0}
        if found != block.classes:
            rows = (first, first + block.rows - 1)
            yield Problem(name, "the labels do not add up to the manifest's class histogram", index, rows)
        first += block.rows
