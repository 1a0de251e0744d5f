"""Write the files of a data set into a folder: rows of any split in any order, the manifest last."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shoal.data.block_buffer import BlockBuffer, EncodedBuffer, Images, RawBuffer
from shoal.data.labels import write_labels
from shoal.data.manifest import MANIFEST_NAME, Manifest, Shard, Split
from shoal.data.shard_writer import Saved, ShardWriter, labels_path
from shoal.errors import DataError
from shoal.files import write_text

BLOCK_BYTES = 1 << 20
SHARD_BYTES = 64 << 20

ENCODED_RATIO = 8
"""Pixels to bytes of a photograph as JPEG, so that a block of such files comes to about ``BLOCK_BYTES``."""


@dataclass(frozen=True)
class Layout:
    """What all rows of a data set have in common, and how they are divided.

    Attributes:
        shape: (C, H, W).
        class_names: None for a data set without labels; else labels index it.
        source: who brought the rows.
        encoded: whether they are PNG and JPEG files instead of pixels.
        rows_per_block: 0 for about 1 MiB of them.
        shard_bytes: about how many bytes of blocks make a shard.
    """

    shape: tuple[int, int, int]
    class_names: Sequence[str] | None
    source: str
    encoded: bool = False
    rows_per_block: int = 0
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        """Settle the rows of a block. Raises DataError for class names that are none."""
        _check_names(self.class_names)
        if not self.rows_per_block:
            row_bytes = -(-self.row_bytes // ENCODED_RATIO) if self.encoded else self.row_bytes
            object.__setattr__(self, "rows_per_block", max(1, BLOCK_BYTES // row_bytes))

    @property
    def row_bytes(self) -> int:
        """Return the bytes of one row's pixels."""
        return int(np.prod(self.shape))


class DataSetWriter:
    """A writer for each split of a data set. Memory: one block of each split.

    A context manager: leaving it writes what is left, and ``shards`` lists all; then ``seal`` makes a data set of the
    folder. A later ``attempt`` can ``restore`` what an earlier one did ``save``.
    """

    def __init__(self, folder: Path, layout: Layout, splits: Sequence[str], *, attempt: int = 0) -> None:
        self._stack = ExitStack()
        self._layout = layout
        self._writers: dict[str, ShardWriter] = {}
        for index, split in enumerate(splits):
            self._writers[split] = ShardWriter(
                folder,
                _stem(index),
                split,
                self._buffer(),
                rows_per_block=layout.rows_per_block,
                shard_bytes=layout.shard_bytes,
                labelled=layout.class_names is not None,
                attempt=attempt,
            )
            self._stack.enter_context(self._writers[split])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def num_rows(self) -> int:
        """Return the rows of all splits."""
        return sum(writer.num_rows for writer in self._writers.values())

    @property
    def rows_by_split(self) -> dict[str, int]:
        """Return the rows of each split."""
        return {split: writer.num_rows for split, writer in self._writers.items()}

    @property
    def shards(self) -> list[Shard]:
        """Return the finished shards, split by split."""
        return [shard for writer in self._writers.values() for shard in writer.shards]

    def add(self, split: str, images: Images, labels: NDArray[np.integer] | None) -> None:
        """Append rows to a split. Raises DataError for those of another shape, type, number or class."""
        self._writers[split].add(images, _check_rows(split, images, labels, self._layout))

    def save(self) -> dict[str, Saved]:
        """Put all rows of no finished shard on the disk for good, and say of each split where they are."""
        return {split: writer.save() for split, writer in self._writers.items()}

    def restore(self, saved: Mapping[str, Saved], shards: Sequence[Shard]) -> None:
        """Go on where an earlier attempt saved its rows, with the ``shards`` that it had finished."""
        for split, writer in self._writers.items():
            writer.restore(saved[split], [shard for shard in shards if shard.split == split])

    def _buffer(self) -> BlockBuffer:
        if self._layout.encoded:
            return EncodedBuffer(self._layout.row_bytes)
        return RawBuffer(self._layout.rows_per_block, self._layout.row_bytes)


def seal(folder: Path, layout: Layout, splits: Sequence[str], shards: Sequence[Shard]) -> Manifest:
    """Give the finished shards their names and write labels and manifest; can be repeated where it was broken off.

    Raises DataError for a split without rows, and where there is no split.
    """
    if not splits:
        raise DataError(f"{layout.source} has no images; a data set needs at least one")
    in_order = [shard for split in splits for shard in shards if shard.split == split]
    entries: dict[str, Split] = {}
    for split in splits:
        first = sum(entry.rows for entry in entries.values())
        rows = sum(shard.rows for shard in in_order if shard.split == split)
        if rows == 0:
            raise DataError(f"split '{split}' of {layout.source} has no images; a data set needs one in each split")
        entries[split] = Split(first=first, rows=rows)
    label_files = [labels_path(folder, _stem(index)) for index in range(len(splits))]
    if not (folder / MANIFEST_NAME).exists():  # written last, and whole: all before it is done
        named = tuple(shard.model_copy(update={"path": f"shard-{i:05d}.arrow"}) for i, shard in enumerate(in_order))
        for before, after in zip(in_order, named, strict=True):
            if (folder / before.path).exists():
                (folder / before.path).rename(folder / after.path)
        labels = None
        if layout.class_names is not None:
            labels = write_labels(folder, np.concatenate([np.fromfile(file, "<i4") for file in label_files]))
        manifest = Manifest(
            version=2 if layout.encoded else 1,
            shape=layout.shape,
            encoding="encoded" if layout.encoded else "raw",
            class_names=None if layout.class_names is None else tuple(layout.class_names),
            rows_per_block=layout.rows_per_block,
            splits=entries,
            shards=named,
            labels=labels,
            source=layout.source,
        ).sealed()
        write_text(folder / MANIFEST_NAME, manifest.to_json())
    for file in label_files:
        file.unlink(missing_ok=True)
    return Manifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())


def _stem(index: int) -> str:
    """Return what the unsealed files of a split are called: a number, since the split's own name may be any text."""
    return f"split{index}"


def _check_names(class_names: Sequence[str] | None) -> None:
    if class_names is None:
        return
    if not class_names or len(set(class_names)) < len(class_names):
        raise DataError(f"class names {list(class_names)} must be at least one and all different; name each class once")
    for name in class_names:
        if name != name.encode(errors="replace").decode():
            raise DataError(f"class name {name!a} is not valid Unicode, so it cannot be stored; rename the class")


def _check_rows(split: str, images: Images, labels: NDArray[np.integer] | None, layout: Layout) -> NDArray[np.int32]:
    """Return the labels of some rows as int32, -1 for none, or raise DataError for what does not fit."""
    if layout.encoded == isinstance(images, np.ndarray):
        raise TypeError(f"an {'encoded' if layout.encoded else 'unencoded'} data set of {type(images).__name__}")
    if isinstance(images, np.ndarray) and (images.dtype != np.uint8 or images.shape[1:] != layout.shape):
        raise DataError(
            f"split '{split}': images of shape {list(images.shape[1:])} and type {images.dtype} do not fit the data "
            f"set's {list(layout.shape)} uint8; all images must be alike"
        )
    if labels is None:
        return np.full(len(images), -1, np.int32)
    if len(labels) != len(images):
        raise DataError(f"split '{split}': {len(images)} images but {len(labels)} labels; give one label per image")
    if layout.class_names is None:
        raise DataError(f"split '{split}' has labels but the classes have no names; give class names, or no labels")
    if len(labels) and not (labels.min() >= -1 and labels.max() < len(layout.class_names)):
        raise DataError(
            f"split '{split}': labels run from {labels.min()} to {labels.max()}, but {len(layout.class_names)} classes "
            f"are numbered 0 to {len(layout.class_names) - 1} (-1: no label); name all classes"
        )
    return labels.astype(np.int32)
