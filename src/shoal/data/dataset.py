"""A data set that is open for reading: any rows by global id, without a copy of the file in memory."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shoal.data.blocks import Blocks, BlockSource, BlockTable, LocalShards
from shoal.data.decoder import Decoder, PillowDecoder, RowError, decode_rows
from shoal.data.gather import Memory
from shoal.data.labels import read_labels
from shoal.data.manifest import Manifest, Split, load_manifest
from shoal.data.remote import RemoteShards
from shoal.data.shard import BlockRows, size_problem
from shoal.errors import DataError, did_you_mean
from shoal.storage.cache import BlockCache
from shoal.storage.location import Location

Images = NDArray[np.uint8]
Ids = NDArray[np.int64]
Labels = NDArray[np.int32]

PART = re.compile(r"(?P<split>[^\[\]]+)\[(?P<start>\d+%?)?:(?P<stop>\d+%?)?\]")
"""A part of a split, by rows or by hundredths of it: ``train[:90%]``, ``train[90%:]``, ``train[:1000]``."""


UNKNOWN = np.iinfo(np.int64).min
BLOCKS_AT_ONCE = 64
"""So many are in use at a time, however many rows are asked for."""


class DataSet:
    """Fixed-shape uint8 images under global ids, in splits, with labels where there are any.

    A block is read when it is first touched, and then compared with its checksum, once per process. Local shards are
    mapped: reading is a gather from the page cache. Those of an object store come block by block through the node's
    cache, and a bounded number of blocks is mapped at a time. Reading from several threads is safe.

    Attributes:
        location: of the directory, local or on an object store: what to call the data set in messages.
    """

    def __init__(self, path: str | Path | Location, manifest: Manifest, cache: BlockCache | None = None) -> None:
        location = Location.parse(path)
        self.location = location
        self.manifest = manifest
        self.fingerprint = manifest.fingerprint
        self.shape: tuple[int, int, int] = manifest.shape
        self.class_names = None if manifest.class_names is None else list(manifest.class_names)
        self.decoder: Decoder = PillowDecoder()
        self._num_rows = manifest.num_rows
        self._row_bytes = manifest.row_bytes
        self._table = BlockTable(manifest)
        self._source: BlockSource
        if location.local is None:
            self._source = RemoteShards(location, manifest, self._table, cache or BlockCache.of_this_node())
        else:
            self._source = LocalShards(location.local, manifest, self._table)
        self._blocks = Blocks(str(location), self._table, self._source)
        self._memory = Memory(self._row_bytes)
        # Where row 0 would lie if all rows lay as those of the block do: a row's address is one look-up and one sum.
        self._row_0 = np.full(len(self._table), UNKNOWN, np.int64)
        self._labels: Labels | None = None
        # All blocks of a split but its last hold equally many rows: within one, a row's block is a quotient.
        self._spans = [
            (split.first, split.first + split.rows, int(np.searchsorted(self._table.first, split.first)))
            for split in manifest.splits.values()
        ]

    @classmethod
    def open(cls, path: str | Path | Location, cache: BlockCache | None = None) -> Self:
        """Open a data set: a directory, or the URI of one, whose blocks then come through ``cache`` (the node's).

        Raises DataError if the manifest is not ours or, in a directory, a file is missing or truncated; the objects of
        a store are looked at when they are first touched. Raises StorageError for a store that does not answer.
        """
        location = Location.parse(path)
        manifest = load_manifest(location)
        if location.local is not None:
            for name, num_bytes in manifest.file_sizes().items():
                if problem := size_problem(location.local / name, num_bytes):
                    raise DataError(f"data set {location}: {name} {problem}; import the data again")
        return cls(location, manifest, cache)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle as the location: memory belongs to its process, a cache to its node."""
        return (type(self).open, (self.location,))

    @property
    def path(self) -> Path:
        """Return the directory of a local data set. Raises DataError for one on an object store, which has none."""
        if self.location.local is None:
            raise DataError(f"data set {self.location} is not in a local directory, which this needs; copy it to one")
        return self.location.local

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
                f"split '{split}' of {self.location} has no rows, or more than there are: rows {start:,} to {stop:,} of"
                f" {whole.rows:,}; use e.g. {part['split']}[:90%]"
            )
        return Split(first=whole.first + start, rows=stop - start)

    def blocks(self, split: str) -> Ids:
        """Return first id and rows of each block of ``split``, int64 [num_blocks, 2]; a part's ends may cut a block."""
        entry = self.span(split)
        first = np.maximum(self._table.first, entry.first)
        rows = np.minimum(self._table.first + self._table.rows, entry.first + entry.rows) - first
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
            self._labels = read_labels(self.location, self.manifest)
        return self._labels[ids]

    def rows(self, split: str, start: int, stop: int) -> Images:
        """Return rows ``start .. stop - 1`` of ``split`` in the order of the manifest, uint8 [n, C, H, W]."""
        entry = self.span(split)
        if not 0 <= start <= stop <= entry.rows:
            raise IndexError(f"rows {start}..{stop} of split '{split}', which has {entry.rows}")
        return self.fetch(np.arange(entry.first + start, entry.first + stop))

    def fetch(self, ids: Ids, out: Images | None = None) -> Images:
        """Return the images of any global ids, in their order, uint8 [n, C, H, W].

        ``out`` receives them where it is given (contiguous, of that shape); without it, small images take a copy less.

        Raises:
            DamagedBlockError: a block touched for the first time is not what was imported, or a file in an encoded data
                set does not become a row.
            StorageError: an object store that does not answer, or refuses.
        """
        if out is not None:
            assert out.flags.c_contiguous
            assert out.dtype == np.uint8
            assert out.shape == (len(ids), *self.shape)
        blocks = self._blocks_of(ids)
        row_0 = self._row_0[blocks]
        if len(ids) == 0 or row_0.min() > UNKNOWN:
            addresses = row_0 + ids * self._row_bytes
            if out is None:
                return self._memory.gather(addresses).reshape(len(ids), *self.shape)
            self._memory.gather(addresses, out.reshape(len(ids), self._row_bytes))
            return out
        out = np.empty((len(ids), *self.shape), np.uint8) if out is None else out
        distinct, which = np.unique(blocks, return_inverse=True)
        for first in range(0, len(distinct), BLOCKS_AT_ONCE):
            here = np.flatnonzero((which >= first) & (which < first + BLOCKS_AT_ONCE))
            some = distinct[first : first + BLOCKS_AT_ONCE]
            held = self._blocks.get(some.tolist())
            read = self._gather if self.manifest.encoding == "raw" else self._decode
            read(held, some, which[here] - first, ids[here], out, here)
        return out

    def prefetch(self, ids: Ids) -> None:
        """Begin to read what ``fetch`` will need for ``ids``, where that is far away, and return at once.

        Whatever goes wrong is left to the ``fetch``. For local data there is nothing to do: the kernel reads ahead.
        """
        if self._source.remote:
            self._blocks.prefetch(np.unique(self._blocks_of(ids)).tolist())

    def _blocks_of(self, ids: Ids) -> Ids:
        if len(ids) and ids.view(np.uint64).max() >= self._num_rows:  # seen so, an id below 0 is beyond all rows
            raise IndexError(f"ids {ids.min()}..{ids.max()} of a data set of {self._num_rows} rows")
        lowest, highest = (int(ids.min()), int(ids.max())) if len(ids) else (0, 0)
        for first, stop, first_block in self._spans:
            if first <= lowest and highest < stop:
                return (ids - first) // self.manifest.rows_per_block + first_block
        return self._table.first[1:].searchsorted(ids, "right")

    # Both write rows ``ids`` to ``out[where]``. Row ids[i] lies in block number blocks[which[i]], held[which[i]].

    def _gather(self, held: Sequence[BlockRows], blocks: Ids, which: Ids, ids: Ids, out: Images, where: Ids) -> None:
        row_0 = np.array([rows.address for rows in held]) - self._table.first[blocks] * self._row_bytes
        if not self._source.remote:
            self._row_0[blocks] = row_0
        addresses = row_0[which] + ids * self._row_bytes
        flat = out.reshape(len(out), self._row_bytes)
        if len(where) == len(out):
            self._memory.gather(addresses, flat)
        else:
            flat[where] = self._memory.gather(addresses)

    def _decode(self, held: Sequence[BlockRows], blocks: Ids, which: Ids, ids: Ids, out: Images, where: Ids) -> None:
        rows = ids - self._table.first[blocks[which]]
        files = [held[block].file(row) for block, row in zip(which.tolist(), rows.tolist(), strict=True)]
        try:
            decode_rows(self.decoder, files, [out[i] for i in where.tolist()])
        except RowError as error:
            problem = f"has a file that {error.why}, for row {ids[error.row]:,}"
            raise self._table.damaged(int(blocks[which[error.row]]), str(self.location), problem) from None

    def _split(self, name: str) -> Split:
        try:
            return self.manifest.splits[name]
        except KeyError:
            known = self.manifest.splits
            raise DataError(
                f"data set {self.location} has no split '{name}'{did_you_mean(name, known)}; it has {', '.join(known)}"
            ) from None


def _row(text: str | None, rows: int, otherwise: int) -> int:
    """Return the row that one end of a part names."""
    if text is None:
        return otherwise
    return rows * int(text[:-1]) // 100 if text.endswith("%") else int(text)
