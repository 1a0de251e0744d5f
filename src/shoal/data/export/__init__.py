"""Write a data set's images out again: as a folder of PNG files, or as Parquet files laid out as the hub's."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from shoal.data.dataset import PART, DataSet
from shoal.data.export.folder import differences, write_folder
from shoal.data.export.parquet import write_parquet
from shoal.data.export.pngs import Part
from shoal.data.write import check_destination
from shoal.errors import DataError, did_you_mean
from shoal.files import atomic_directory

__all__ = ["Exported", "export"]

To = Literal["folder", "parquet"]

Progress = Callable[[int], None]
"""Called with the number of images done so far."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        num_images: of all splits together.
        differences: sentences that say in what a data set imported from it would not equal this one; empty: in nothing.
    """

    num_images: int
    differences: tuple[str, ...]


def export(
    data: DataSet | Path | str,
    dest: Path,
    to: To = "folder",
    *,
    split: str | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write a data set, or one split or part of it (``train[:1000]``), as the new directory ``dest``.

    ``folder`` makes SPLIT/CLASS/000000.png, numbered by the row in the split, or SPLIT/000000.png without labels.
    ``parquet`` makes SPLIT-00000-of-00003.parquet of at most about 256 MiB, with the columns image (struct of the PNG's
    bytes and a path) and label (int64, -1 for none, the classes' names as ClassLabel in the hub's metadata). PNG keeps
    every pixel. Memory: a few MiB for each thread; ``dest`` appears when all is written and is never overwritten.

    Raises DataError for another kind, a destination that exists, other than 1 or 3 channels and, in a folder, rows
    without a label among labelled ones and classes whose names no folder can have.
    """
    if to not in get_args(To):
        raise DataError(f"there is no export to '{to}'{did_you_mean(to, get_args(To))}; choose folder or parquet")
    dest = Path(dest).absolute()
    check_destination(dest)
    dataset = data if isinstance(data, DataSet) else DataSet.open(data)
    if dataset.shape[0] not in (1, 3):
        raise DataError(
            f"images of {dataset.shape[0]} channels are no PNG; only grey (1) and colour (3) can be exported"
        )
    parts = [_part(dataset, name) for name in (dataset.splits if split is None else [split])]
    found = differences(dataset, parts) if to == "folder" else ()
    num_images = 0
    with atomic_directory(dest) as folder:
        for part in parts:
            for num in (write_folder if to == "folder" else write_parquet)(dataset, part, folder):
                num_images += num
                if progress is not None:
                    progress(num_images)
    return Exported(num_images, found)


def _part(dataset: DataSet, split: str) -> Part:
    span = dataset.span(split)
    part = PART.fullmatch(split)
    name = part["split"] if part else split
    return Part(name, span.first, span.rows, span.first - dataset.span(name).first)
