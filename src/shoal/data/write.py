"""Write a data set: chunks of images in, shards of checksummed blocks out, whole or not at all."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shoal.data.labels import write_labels
from shoal.data.manifest import MANIFEST_NAME, Manifest, Shard, Split
from shoal.data.shard_writer import ShardWriter
from shoal.errors import DataError
from shoal.files import atomic_directory

BLOCK_BYTES = 1 << 20
SHARD_BYTES = 64 << 20

Chunk = tuple[NDArray[np.uint8], NDArray[np.integer] | None]
"""Images uint8 [n, C, H, W] and their labels, integers [n] with -1 for none, or None: n of any size."""

Progress = Callable[[int], None]
"""Called with the number of images done so far."""


def check_destination(out: Path) -> None:
    """Refuse, by DataError, a destination that is there already, so that nothing is read in vain."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise DataError(f"{out} exists already and is never overwritten; choose another --out, or delete it first")


def write_dataset(
    out: Path,
    splits: Mapping[str, Iterable[Chunk]],
    *,
    shape: tuple[int, int, int],
    class_names: list[str] | None,
    source: str,
    rows_per_block: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Manifest:
    """Write the splits, in their order, as the data set directory ``out``, which appears when all is written.

    ``shape`` is (C, H, W). ``class_names`` says whether there are labels: None for none, else labels index it. A block
    holds ``rows_per_block`` rows (default: about 1 MiB of them), a shard about ``shard_bytes`` of blocks. Memory: one
    block, one chunk and 4 bytes per row. Raises DataError for a destination that exists, an empty split, and chunks
    of another shape, type or length; whatever else the chunks raise passes through. In all cases nothing is left.
    """
    out = out.absolute()
    check_destination(out)
    _check_names(class_names)
    row_bytes = int(np.prod(shape))
    rows_per_block = rows_per_block or max(1, BLOCK_BYTES // row_bytes)
    blocks_per_shard = max(1, shard_bytes // (rows_per_block * row_bytes))
    shards: list[Shard] = []
    entries: dict[str, Split] = {}
    labels: list[NDArray[np.int32]] = []
    with atomic_directory(out) as folder:
        done = 0
        for name, chunks in splits.items():
            writer = ShardWriter(folder, name, len(shards), row_bytes, rows_per_block, blocks_per_shard, class_names)
            with writer:
                for images, numbers in chunks:
                    checked = _check_chunk(name, images, numbers, shape, class_names)
                    writer.add(images, checked)
                    labels.append(checked)
                    if progress is not None:
                        progress(done + writer.num_rows)
            if writer.num_rows == 0:
                raise DataError(f"split '{name}' of {source} has no images; a data set needs one in each split")
            entries[name] = Split(first=done, rows=writer.num_rows)
            shards += writer.shards
            done += writer.num_rows
        if not entries:
            raise DataError(f"{source} has no images; a data set needs at least one")
        manifest = Manifest(
            shape=shape,
            class_names=None if class_names is None else tuple(class_names),
            rows_per_block=rows_per_block,
            splits=entries,
            shards=tuple(shards),
            labels=None if class_names is None else write_labels(folder, np.concatenate(labels)),
            source=source,
        ).sealed()
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _check_names(class_names: list[str] | None) -> None:
    if class_names is None:
        return
    if not class_names or len(set(class_names)) < len(class_names):
        raise DataError(f"class names {class_names} must be at least one and all different; name each class once")
    for name in class_names:
        if name != name.encode(errors="replace").decode():
            raise DataError(f"class name {name!a} is not valid Unicode, so it cannot be stored; rename the class")


def _check_chunk(
    split: str,
    images: NDArray[np.uint8],
    labels: NDArray[np.integer] | None,
    shape: tuple[int, int, int],
    class_names: list[str] | None,
) -> NDArray[np.int32]:
    """Return the labels of a chunk as int32, -1 for none, or raise DataError for what does not fit."""
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        raise DataError(
            f"split '{split}': images of shape {list(images.shape[1:])} and type {images.dtype} do not fit the data "
            f"set's {list(shape)} uint8; all images must be alike"
        )
    if labels is None:
        return np.full(len(images), -1, np.int32)
    if len(labels) != len(images):
        raise DataError(f"split '{split}': {len(images)} images but {len(labels)} labels; give one label per image")
    if class_names is None:
        raise DataError(f"split '{split}' has labels but the classes have no names; give class names, or no labels")
    if len(labels) and not (labels.min() >= -1 and labels.max() < len(class_names)):
        raise DataError(
            f"split '{split}': labels run from {labels.min()} to {labels.max()}, but {len(class_names)} classes are "
            f"numbered 0 to {len(class_names) - 1} (-1: no label); name all classes"
        )
    return labels.astype(np.int32)
