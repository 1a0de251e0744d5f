"""Import WebDataset tars: image and label of a sample are members that share a name up to its first dot."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shoal.data.importers.class_names import MAX_CLASSES, names_for
from shoal.data.importers.image_files import ImageFiles, Item, printable
from shoal.data.importers.images import Mode
from shoal.data.importers.source import Rows
from shoal.data.importers.splits import SplitFile, find_files, order_splits
from shoal.data.importers.tar_file import is_packed
from shoal.data.importers.tar_samples import SUFFIXES, Sample, read_samples
from shoal.errors import DataError

UNIT_BYTES = 16 << 20
"""Of rows that one process reads at a time."""


class TarPart(NamedTuple):
    """Samples of a tar: from the one at byte ``start`` up to that at ``stop``, None for all there are."""

    file: Path
    split: str
    start: int
    stop: int | None


@dataclass(frozen=True)
class WebDatasetSource:
    """Samples of tars, some 16 MiB of rows in a unit; a gzipped tar, which has to be read from its start, is one.

    Attributes:
        numbers: class numbers of labels that are names, None for labels that are numbers.
        files: how the images become rows.
    """

    shape: tuple[int, int, int]
    class_names: Sequence[str] | None
    splits: Sequence[str]
    units: Sequence[TarPart]
    num_rows: int | None
    numbers: dict[str, int] | None
    files: ImageFiles
    encoded: bool
    kind: str = "webdataset"

    def read(self, unit: TarPart) -> Iterator[Rows]:
        """Yield the rows of a part of a tar, in pieces of a few MiB. Raises DataError that names tar and sample."""
        yield from self.files.rows(unit.split, self._items(unit), labelled=self.class_names is not None)

    def _items(self, unit: TarPart) -> Iterator[Item]:
        for sample in read_samples(unit.file, unit.start, unit.stop):
            number = sample.label
            if number is None or number == -1 or sample.image is None:
                number = -1
            elif self.numbers is not None:
                number = self.numbers.get(str(number))
            if not isinstance(number, int) or number >= max(1, len(self.class_names or "")):
                raise DataError(f"{_name(unit.file, sample)} has a label that was not there before; import anew")
            yield _name(unit.file, sample), sample.image, number


def open_webdataset(
    src: Path,
    *,
    size: int | tuple[int, int] | None = None,
    mode: Mode | None = None,
    skip_bad: bool = False,
    keep_encoded: bool = False,
) -> WebDatasetSource:
    """Open a tar, a folder of them or ``name-{000..012}.tar``; ``splits.find_files`` says how names make splits.

    A sample's image is its member jpg, jpeg or png, its label the number or name in its member cls, or under "label"
    in its member json; -1 is none. Where not all labels are numbers, classes are sorted by name. Images become rows as
    ``images.decode`` says, cropped and resized to ``size``, as grey or colour by ``mode``; ``skip_bad`` leaves out
    samples whose image is missing or unreadable, counted; ``keep_encoded`` hands on the files.

    All tars are gone through once for their headers and labels. Raises DataError for a damaged tar, and for a sample
    without an image, or without a label in a split where others have one: also where members do not lie side by side.
    """
    tars = find_files(src, SUFFIXES)
    starts, labels = _scan(tars, skip_bad)
    names, numbers = (None, None) if labels is None else _classes(src, labels)
    files = ImageFiles.like_first(
        ((_name(unit.file, sample), sample.image, -1) for unit in tars for sample in read_samples(unit.file)),
        str(src),
        mode=mode,
        size=size,
        skip_bad=skip_bad,
        keep_encoded=keep_encoded,
    )
    step = max(1, UNIT_BYTES // int(np.prod(files.shape)))
    return WebDatasetSource(
        shape=files.shape,
        class_names=names,
        splits=order_splits(tar.split for tar in tars),
        units=[part for tar, at in zip(tars, starts, strict=True) for part in _parts(tar, at, step)],
        num_rows=None if skip_bad else sum(map(len, starts)),
        numbers=numbers,
        files=files,
        encoded=keep_encoded,
    )


def _parts(tar: SplitFile, starts: Sequence[int], step: int) -> Iterator[TarPart]:
    """Cut a tar into parts of ``step`` samples."""
    firsts: Sequence[int] = [0][: len(starts)] if is_packed(tar.file) else starts[::step]
    for start, stop in pairwise([*firsts, None]):
        yield TarPart(tar.file, tar.split, start or 0, stop)


def _scan(tars: Sequence[SplitFile], skip_bad: bool) -> tuple[list[Sequence[int]], set[int | str] | None]:
    """Return where the samples of each tar start, and the labels that occur, None where no sample has one.

    Refuses what is missing.
    """
    labels: set[int | str] = set()
    firsts: dict[str, tuple[bool, str]] = {}
    starts: list[Sequence[int]] = []
    for tar in tars:
        starts.append(here := array("q"))
        for sample in read_samples(tar.file, with_images=False):
            name = _name(tar.file, sample)
            here.append(sample.start)
            if sample.image is None and not skip_bad:
                raise DataError(
                    f"{name} has no image (jpg, jpeg, png); add it, sort the tar so that members of one sample lie "
                    "side by side (tar --sort=name), or leave out such samples with --skip-bad"
                )
            if sample.image is None and sample.label is None:
                continue
            has_label = sample.label is not None
            first_has, first = firsts.setdefault(tar.split, (has_label, name))
            if has_label != first_has:
                without, other = (first, name) if has_label else (name, first)
                raise DataError(
                    f"{without} has no label (cls, or label in json), but {other} has; add it, or sort the tar so that "
                    "members of one sample lie side by side (tar --sort=name)"
                )
            if sample.label is not None and sample.label != -1 and sample.image is not None:
                labels.add(sample.label)
            if len(labels) > MAX_CLASSES:
                raise DataError(f"{name} is of the {len(labels):,}th class; a data set has at most {MAX_CLASSES:,}")
    return starts, labels if any(has for has, _ in firsts.values()) else None


def _classes(src: Path, labels: set[int | str]) -> tuple[list[str], dict[str, int] | None]:
    """Return the names of the classes and, where not all labels are numbers, their numbers."""
    numbered = [label for label in labels if isinstance(label, int)]
    if len(numbered) == len(labels):
        if numbered and min(numbered) < 0:
            raise DataError(
                f"{src} has the label {min(numbered)}; classes are numbered from 0 (-1: none); renumber them"
            )
        return names_for([np.array(numbered)], None), None
    names = sorted({str(label) for label in labels})
    return names, {name: number for number, name in enumerate(names)}


def _name(path: Path, sample: Sample) -> str:
    return f"{path}: sample {printable(sample.key)}"
