"""A data set that is open for reading: any rows by global id, without a copy of the file in memory."""

import re
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shoal.data.labels import read_labels
from shoal.data.manifest import Manifest, Split, load_manifest
from shoal.data.shard import MappedShard, size_problem
from shoal.errors import DataError, did_you_mean

Images = NDArray[np.uint8]
Ids = NDArray[np.int64]
Labels = NDArray[np.int32]

PART = re.compile(r"(?P<split>[^\[\]]+)\[(?P<start>\d+%?)?:(?P<stop>\d+%?)?\]")
"""A part of a split, by rows or by hundredths of it: ``train[:90%]``, ``train[90%:]``, ``train[:1000]``."""


class DataSet:
    """Fixed-shape uint8 images under global ids, in splits, with labels where there are any.

    Shards are mapped when they are first touched, and each block's checksum is compared once per process, when it is
    first touched; after that reading is a gather from the page cache. Reading from several threads is safe.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.fingerprint = manifest.fingerprint
        self.shape: tuple[int, int, int] = manifest.shape
        self.class_names = None if manifest.class_names is None else list(manifest.class_names)
        self._num_rows = manifest.num_rows
        self._row_bytes = manifest.row_bytes
        blocks = [
            (shard_index, block_index, block.rows)
            for shard_index, shard in enumerate(manifest.shards)
            for block_index, block in enumerate(shard.blocks)
        ]
        self._shard_of_block, self._index_in_shard, self._rows = np.array(blocks, np.int64).T
        self._first = np.cumsum(self._rows) - self._rows
        self._offset = np.full(len(blocks), -1, np.int64)  # in bytes from the start of the shard, known once mapped
        self._checked = np.zeros(len(blocks), np.bool_)
        self._mapped: dict[int, MappedShard] = {}
        self._labels: Labels | None = None

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open the data set directory ``path``. Raises DataError if a file is missing, truncated or not ours."""
        path = Path(path)
        manifest = load_manifest(path)
        for name, num_bytes in manifest.file_sizes().items():
            if problem := size_problem(path / name, num_bytes):
                raise DataError(f"data set {path}: {name} {problem}; import the data again")
        return cls(path, manifest)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle as the path: a memory map belongs to its process."""
        return (type(self).open, (self.path,))

    @property
    def splits(self) -> dict[str, int]:
        """Return the number of rows of each split."""
        return {name: split.rows for name, split in self.manifest.splits.items()}

    @property
    def num_classes(self) -> int:
        """Return how many classes the labels tell apart; 0 for a data set without labels. May read the labels."""
        if self.manifest.labels is None:
            return 0
        if self.class_names is not None:
            return len(self.class_names)
        labels = self.labels_at(np.arange(self._num_rows))
        return 0 if labels is None else int(labels.max(initial=-1)) + 1

    def num_rows(self, split: str) -> int:
        """Return the number of rows of ``split``. Raises DataError for a split that is not there."""
        return self.span(split).rows

    def span(self, split: str) -> Split:
        """Return the global ids of a split, or of a part of one: ``train[:90%]``, in the order of the manifest.

        Where a part begins or ends in hundredths, the row is rounded down, so that ``train[:90%]`` and ``train[90%:]``
        share no row and miss none.

        Raises:
            DataError: no such split, or a part without rows.
        """
        part = PART.fullmatch(split)
        if part is None:
            return self._split(split)
        whole = self._split(part["split"])
        start, stop = (
            _row(part[end], whole.rows, otherwise) for end, otherwise in (("start", 0), ("stop", whole.rows))
        )
        if not 0 <= start < stop <= whole.rows:
            raise DataError(
                f"split '{split}' of {self.path} has no rows, or more than there are: rows {start:,} to {stop:,} of"
                f" {whole.rows:,}; use e.g. {part['split']}[:90%]"
            )
        return Split(first=whole.first + start, rows=stop - start)

    def blocks(self, split: str) -> Ids:
        """Return first id and rows of each block of ``split``, int64 [num_blocks, 2]; a part's ends may cut a block."""
        entry = self.span(split)
        first = np.maximum(self._first, entry.first)
        rows = np.minimum(self._first + self._rows, entry.first + entry.rows) - first
        inside = rows > 0
        return np.stack([first[inside], rows[inside]], axis=1)

    def labels(self, split: str) -> Labels | None:
        """Return the labels of ``split``, int32 [num_rows] with -1 for none, or None in a data set without labels."""
        entry = self.span(split)
        return self.labels_at(np.arange(entry.first, entry.first + entry.rows))

    def labels_at(self, ids: Ids) -> Labels | None:
        """Return the labels of any global ids, int32 [n], or None. Raises DataError if the labels file was changed."""
        if self.manifest.labels is None:
            return None
        if self._labels is None:
            self._labels = read_labels(self.path, self.manifest)
        return self._labels[ids]

    def rows(self, split: str, start: int, stop: int) -> Images:
        """Return rows ``start .. stop - 1`` of ``split`` in the order of the manifest, uint8 [n, C, H, W]."""
        entry = self.span(split)
        if not 0 <= start <= stop <= entry.rows:
            raise IndexError(f"rows {start}..{stop} of split '{split}', which has {entry.rows}")
        return self.fetch(np.arange(entry.first + start, entry.first + stop))

    def fetch(self, ids: Ids, out: Images | None = None) -> Images:
        """Return the images of any global ids, in their order, uint8 [n, C, H, W].

        ``out`` receives them where it is given (contiguous, of that shape). Raises DataError that names shard, block
        and rows when a block touched for the first time is not what was imported.
        """
        if out is None:
            out = np.empty((len(ids), *self.shape), np.uint8)
        assert out.flags.c_contiguous
        assert out.dtype == np.uint8
        assert out.shape == (len(ids), *self.shape)
        if len(ids) == 0:
            return out
        if ids.min() < 0 or ids.max() >= self._num_rows:
            raise IndexError(f"ids {ids.min()}..{ids.max()} of a data set of {self._num_rows} rows")
        blocks = np.searchsorted(self._first, ids, side="right") - 1
        if not self._checked[blocks].all():
            for block in np.unique(blocks):
                self._touch(int(block))
        row_bytes = self._row_bytes
        offsets = self._offset[blocks] + (ids - self._first[blocks]) * row_bytes
        rows = out.reshape(len(ids), row_bytes).view(f"V{row_bytes}")[:, 0]
        shards = self._shard_of_block[blocks]
        if (shards == shards[0]).all():
            rows[:] = self._mapped[int(shards[0])].rows_at[offsets]
        else:
            for shard in np.unique(shards):
                here = np.flatnonzero(shards == shard)
                rows[here] = self._mapped[int(shard)].rows_at[offsets[here]]
        return out

    def _touch(self, block: int) -> None:
        """Map the block's shard and compare the block's checksum, once per process."""
        if self._checked[block]:
            return
        shard, index = int(self._shard_of_block[block]), int(self._index_in_shard[block])
        if shard not in self._mapped:
            self._mapped[shard] = MappedShard(self.path, self.manifest.shards[shard], self._row_bytes)
        mapped = self._mapped[shard]
        if problem := mapped.block_problem(index):
            first = int(self._first[block])
            raise DataError(
                f"data set {self.path}: block {index} of {mapped.shard.path} (rows {first:,} to "
                f"{first + int(self._rows[block]) - 1:,}) {problem}: the file was damaged after the import; "
                "`shoal data verify` lists all damage, importing again mends it"
            )
        self._offset[block] = mapped.offsets[index]
        self._checked[block] = True

    def _split(self, name: str) -> Split:
        try:
            return self.manifest.splits[name]
        except KeyError:
            known = self.manifest.splits
            raise DataError(
                f"data set {self.path} has no split '{name}'{did_you_mean(name, known)}; it has {', '.join(known)}"
            ) from None


def _row(text: str | None, rows: int, otherwise: int) -> int:
    """Return the row that one end of a part names."""
    if text is None:
        return otherwise
    return rows * int(text[:-1]) // 100 if text.endswith("%") else int(text)
