"""Write a data set: chunks of images in, shards of checksummed blocks out, whole or not at all."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shoal.data.dataset_writer import SHARD_BYTES, DataSetWriter, Layout, seal
from shoal.data.manifest import Manifest
from shoal.errors import DataError
from shoal.files import atomic_directory

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
    block of each split and one chunk. Raises DataError for a destination that exists, an empty split, and chunks of
    another shape, type or length; whatever else the chunks raise passes through. In all cases nothing is left.
    """
    out = out.absolute()
    check_destination(out)
    layout = Layout(shape, class_names, source, rows_per_block=rows_per_block or 0, shard_bytes=shard_bytes)
    with atomic_directory(out) as folder:
        with DataSetWriter(folder, layout, list(splits)) as writer:
            for name, chunks in splits.items():
                for images, labels in chunks:
                    writer.add(name, images, labels)
                    if progress is not None:
                        progress(writer.num_rows)
        return seal(folder, layout, list(splits), writer.shards)
