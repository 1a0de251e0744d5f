"""Import a folder of PNG and JPEG files."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shoal.data.importers.image_files import ImageFiles, Item
from shoal.data.importers.images import Mode
from shoal.data.importers.layout import find_images
from shoal.data.importers.source import Rows

UNIT_BYTES = 16 << 20
"""Pixels that one process reads at a time."""
MAX_UNIT_FILES = 256


class FolderUnit(NamedTuple):
    """Some files of a split, and the number of each one's class, -1 for none."""

    split: str
    files: tuple[Path, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class FolderSource:
    """The image files that ``open_folder`` found; see ``source.Source``."""

    src: Path
    files: ImageFiles
    class_names: Sequence[str] | None
    splits: Sequence[str]
    units: Sequence[FolderUnit]
    num_rows: int
    kind: str = "folder"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of every image."""
        return self.files.shape

    @property
    def encoded(self) -> bool:
        """Return whether the files are kept as they are."""
        return self.files.keep_encoded

    def __getstate__(self) -> dict[str, object]:
        """Leave the units out: another process is told the one that it is to read."""
        return {**vars(self), "units": ()}

    def read(self, unit: FolderUnit) -> Iterator[Rows]:
        """Yield the rows of a unit."""
        items = _items(zip(unit.files, unit.labels, strict=True))
        yield from self.files.rows(unit.split, items, labelled=self.class_names is not None)


def open_folder(
    src: Path,
    *,
    size: int | tuple[int, int] | None = None,
    mode: Mode | None = None,
    skip_bad: bool = False,
    test_fraction: float = 0.1,
    keep_encoded: bool = False,
) -> FolderSource:
    """Open the images under ``src``.

    The folder is laid out as ``layout.find_images`` says; without val/ and test/, ``test_fraction`` of the files become
    test. Files become pixels as ``images.decode`` says: cropped and resized to ``size`` (pixels, or height and width)
    where it is given, and as they are otherwise, in which case all must have one size. ``mode`` None takes that of the
    first image, and refuses colour after grey. With ``keep_encoded`` the data set holds the files themselves. A file
    that cannot be read is refused by name, or with ``skip_bad`` left out and counted. Raises DataError.
    """
    found = find_images(src, test_fraction)
    names = sorted({item.class_name for items in found.values() for item in items if item.class_name is not None})
    numbers: dict[str | None, int] = {None: -1, **{name: number for number, name in enumerate(names)}}
    everything = ((item.file, numbers[item.class_name]) for items in found.values() for item in items)
    files = ImageFiles.like_first(
        _items(everything), str(src), mode=mode, size=size, skip_bad=skip_bad, keep_encoded=keep_encoded
    )
    step = min(MAX_UNIT_FILES, max(1, UNIT_BYTES // math.prod(files.shape)))
    units = []
    for split, items in found.items():
        for start in range(0, len(items), step):
            part = items[start : start + step]
            labels = tuple(numbers[item.class_name] for item in part)
            units.append(FolderUnit(split, tuple(item.file for item in part), labels))
    return FolderSource(src, files, names or None, list(found), units, sum(map(len, found.values())))


def _items(files: Iterable[tuple[Path, int]]) -> Iterator[Item]:
    return ((str(file), file.read_bytes(), label) for file, label in files)
