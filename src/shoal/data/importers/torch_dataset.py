"""Import any PyTorch data set from Python."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shoal.data.importers.pipeline import ImportProgress, run_import
from shoal.data.importers.source import Rows
from shoal.data.importers.splitting import Shares
from shoal.data.importers.torch_items import split_item, to_label, to_pixels
from shoal.data.manifest import Manifest
from shoal.data.write import check_destination
from shoal.errors import DataError

UNIT_BYTES = 4 << 20


class ItemRange(NamedTuple):
    """Items ``start`` to ``stop`` - 1 of a split's data set; ``stop`` None: all that it iterates over."""

    split: str
    start: int
    stop: int | None


@dataclass(frozen=True)
class TorchSource:
    """The items of PyTorch data sets, one data set for each split; pickled with them where other processes read it."""

    shape: tuple[int, int, int]
    class_names: Sequence[str] | None
    splits: Sequence[str]
    units: Sequence[ItemRange]
    num_rows: int | None
    datasets: Mapping[str, Any]
    kind: str = "torch"
    encoded: bool = False

    def read(self, unit: ItemRange) -> Iterator[Rows]:
        """Yield the items of a unit, in pieces of about 4 MiB. Raises DataError that names split and item."""
        dataset = self.datasets[unit.split]
        numbers = None if unit.stop is None else range(unit.start, unit.stop)
        items = enumerate(dataset) if numbers is None else zip(numbers, map(dataset.__getitem__, numbers), strict=True)
        rows = (self._row(f"item {number:,} of split '{unit.split}'", item) for number, item in items)
        while piece := list(islice(rows, _items_per_unit(self.shape))):
            labels = None if self.class_names is None else np.array([label for _, label in piece], np.int64)
            yield Rows(unit.split, np.stack([pixels for pixels, _ in piece]), labels)

    def _row(self, name: str, item: object) -> tuple[NDArray[np.uint8], int]:
        image, label = split_item(name, item)
        pixels = to_pixels(name, image)
        if pixels.shape[1:] != self.shape[1:]:
            raise DataError(
                f"{name} has {pixels.shape[1]}x{pixels.shape[2]} pixels (height x width), but the first one "
                f"{self.shape[1]}x{self.shape[2]}; all need one size: add Resize and CenterCrop to the transforms"
            )
        if pixels.shape[0] > self.shape[0]:
            raise DataError(f"{name} has colour, but the first one is grey; make all alike in the transforms")
        if label is not None and self.class_names is None:
            raise DataError(f"{name} has a label, but the first one has none; label the first one too, or none")
        return np.broadcast_to(pixels, self.shape), to_label(name, label, self.class_names)


def open_torch(datasets: object, *, class_names: Sequence[str] | None = None) -> TorchSource:
    """Open a PyTorch data set, which becomes the split train, or a mapping from splits to data sets.

    A data set has a length and items by number, or can be iterated over, more than once. An item is an image, an
    (image, label) pair or a mapping with such keys; ``torch_items`` says what images and labels may be. All images must
    have the size of the first. The classes are named by ``class_names``, else by the data sets' own ``classes``, as
    those of torchvision have them. Raises DataError for a data set without items, labels without names for the
    classes, and a first item that is another when read again: random transforms belong into the training.
    """
    by_split: dict[str, Any] = dict(datasets) if isinstance(datasets, Mapping) else {"train": datasets}
    if not by_split:
        raise DataError("there is no data set; give one, or a mapping from splits to data sets")
    shape: tuple[int, int, int] | None = None
    labelled = False
    units: list[ItemRange] = []
    for split, dataset in by_split.items():
        image, label = _first(split, dataset)
        channels, height, width = to_pixels(f"item 0 of split '{split}'", image).shape
        shape = shape or (channels, height, width)
        labelled = labelled or label is not None
        step = _items_per_unit(shape)
        if is_map_style(dataset):
            num = len(dataset)
            units += [ItemRange(split, start, min(start + step, num)) for start in range(0, num, step)]
        else:
            units.append(ItemRange(split, 0, None))
    assert shape is not None
    names = list(class_names) if class_names is not None else _names_of(by_split) if labelled else None
    known = all(unit.stop is not None for unit in units)
    return TorchSource(
        shape=shape,
        class_names=names,
        splits=list(by_split),
        units=units,
        num_rows=sum(unit.stop - unit.start for unit in units if unit.stop is not None) if known else None,
        datasets=by_split,
    )


def import_torch(
    datasets: object,
    out: Path,
    *,
    class_names: Sequence[str] | None = None,
    jobs: int = 1,
    limit: int | None = None,
    split: Mapping[str, float] | None = None,
    progress: ImportProgress | None = None,
) -> Manifest:
    """Make the data set directory ``out`` of a PyTorch data set, or of a mapping from splits to such.

    ``open_torch`` says what data sets may be, and where ``class_names`` come from. ``jobs`` processes read items by
    number; with more than one, the data sets are pickled, so their classes must be in a module that can be imported.
    Of each split the first ``limit`` items are taken; the items of train are divided by the shares in ``split``,
    {"train": 0.9, "val": 0.1}, by what is in them. ``progress`` is called with the images done and, where that is
    known, all of them. An import cannot be continued: another data set could not be told from this one.

    Raises DataError for what ``open_torch`` and ``pipeline.run_import`` refuse; nothing is left behind.
    """
    check_destination(out)
    source = open_torch(datasets, class_names=class_names)
    shares = None if split is None else Shares(split)
    manifest, _ = run_import(source, out, jobs=jobs, limit=limit, split=shares, progress=progress)
    return manifest


def is_map_style(dataset: object) -> bool:
    """Return whether a data set has items by number; an iterable one of PyTorch's only inherits the method."""
    data = sys.modules.get("torch.utils.data")
    is_iterable = data is not None and isinstance(dataset, data.IterableDataset)
    return not is_iterable and hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")


def _items_per_unit(shape: tuple[int, int, int]) -> int:
    return max(1, UNIT_BYTES // int(np.prod(shape)))


def _first(split: str, dataset: Any) -> tuple[object, object]:
    """Return image and label of the first item, which must be the same when it is read again."""
    by_number = is_map_style(dataset)
    if not by_number and (not isinstance(dataset, Iterable) or iter(dataset) is dataset):
        raise DataError(
            f"the data set of split '{split}', {type(dataset).__name__}, has neither __len__ with __getitem__ nor an "
            "__iter__ that starts anew each time; give it one of the two"
        )
    seen = []
    for _ in range(2):
        items = islice(map(dataset.__getitem__, range(len(dataset))) if by_number else dataset, 1)
        seen += [split_item(f"item 0 of split '{split}'", item) for item in items]
    if not seen:
        raise DataError(f"the data set of split '{split}' has no items; leave the split out")
    if len(seen) == 1:
        raise DataError(f"the data set of split '{split}' can be iterated over only once; let __iter__ start anew")
    one, two = (to_pixels(f"item 0 of split '{split}'", image) for image, _ in seen)
    if not np.array_equal(one, two):
        raise DataError(
            f"item 0 of split '{split}' is another image each time it is read; leave random transforms out, and "
            "augment while training"
        )
    return seen[0]


def _names_of(datasets: Mapping[str, Any]) -> list[str]:
    """Return the names of the classes that the data sets bring along."""
    named = {
        split: [str(name) for name in dataset.classes] for split, dataset in datasets.items() if _has_names(dataset)
    }
    if not named:
        raise DataError(
            "the items have labels, but the data set has no classes to name them; give class_names=['…', …], "
            "one for each class, in the order of their numbers"
        )
    (first, names), *others = named.items()
    if differing := [split for split, other in others if other != names]:
        raise DataError(f"the classes of split '{differing[0]}' are not those of '{first}'; give class_names")
    return names


def _has_names(dataset: Any) -> bool:
    return isinstance(getattr(dataset, "classes", None), list | tuple) and len(dataset.classes) > 0
