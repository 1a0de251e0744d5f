"""Import a folder of PNG and JPEG files."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from shoal.data.importers.images import BadImageError, Mode, check_size, decode
from shoal.data.importers.layout import Found, find_images
from shoal.data.manifest import Manifest
from shoal.data.write import Chunk, Progress, check_destination, write_dataset
from shoal.errors import DataError

CHUNK_IMAGES = 64
MAX_THREADS = 8


def import_folder(
    src: Path,
    out: Path,
    *,
    size: int | tuple[int, int] | None = None,
    mode: Mode | None = None,
    skip_bad: bool = False,
    test_fraction: float = 0.1,
    progress: Progress | None = None,
) -> tuple[Manifest, int]:
    """Import the images under ``src`` and return the manifest and the number of files that were skipped.

    The folder is laid out as ``layout.find_images`` says; without val/ and test/, ``test_fraction`` of the files become
    test. Files become pixels as ``images.decode`` says: cropped and resized to ``size`` (pixels, or height and width)
    where it is given, and as they are otherwise, in which case all must have one size. ``mode`` None takes that of the
    first image, and refuses colour after grey. A file that cannot be read is refused by name, or with ``skip_bad``
    left out and counted. Raises DataError.
    """
    check_destination(out)
    if mode is not None and mode not in get_args(Mode):
        raise DataError(f"mode '{mode}' is not known; give L for grey or RGB for colour")
    splits = find_images(src, test_fraction)
    named = sorted({item.class_name for found in splits.values() for item in found if item.class_name is not None})
    reader = _Reader(check_size(size), mode, skip_bad, {name: number for number, name in enumerate(named)})
    first = reader.set_first([item for found in splits.values() for item in found])
    manifest = write_dataset(
        out,
        {split: reader.chunks(found) for split, found in splits.items()},
        shape=(first.shape[0], first.shape[1], first.shape[2]),
        class_names=named or None,
        source="folder",
        progress=progress,
    )
    return manifest, reader.num_skipped


@dataclass
class _Reader:
    """Decode files in a pool of threads, in order, a chunk at a time."""

    size: tuple[int, int] | None
    mode: Mode | None
    skip_bad: bool
    numbers: dict[str, int]
    num_skipped: int = 0
    first_file: Path = field(default_factory=Path)
    shape: tuple[int, ...] = ()

    def set_first(self, found: list[Found]) -> NDArray[np.uint8]:
        """Return the first image that can be read; the others must be like it."""
        for item in found:
            image = self._decode(item.file)
            if not isinstance(image, BadImageError):
                self.first_file, self.shape = item.file, image.shape
                return image
            self._refuse_unless_skipping(item.file, image)
        raise DataError(
            f"none of the {len(found):,} image files, such as {found[0].file}, can be read; check the files"
        )

    def chunks(self, found: list[Found]) -> Iterator[Chunk]:
        """Yield the images of one split."""
        with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
            for start in range(0, len(found), CHUNK_IMAGES):
                part = found[start : start + CHUNK_IMAGES]
                images, labels = [], []
                for item, image in zip(part, pool.map(self._decode, [item.file for item in part]), strict=True):
                    if isinstance(image, BadImageError):
                        self._refuse_unless_skipping(item.file, image)
                        self.num_skipped += 1
                        continue
                    images.append(self._like_first(item.file, image))
                    labels.append(-1 if item.class_name is None else self.numbers[item.class_name])
                if images:
                    yield np.stack(images), np.array(labels) if self.numbers else None

    def _decode(self, file: Path) -> NDArray[np.uint8] | BadImageError:
        try:
            return decode(file, self.mode, self.size)
        except BadImageError as error:
            return error

    def _refuse_unless_skipping(self, file: Path, error: BadImageError) -> None:
        if not self.skip_bad:
            raise DataError(
                f"{file} cannot be read: {error}; replace or delete it, or leave out such files with --skip-bad"
            )

    def _like_first(self, file: Path, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if image.shape[1:] != self.shape[1:]:
            raise DataError(
                f"{file} has {_pixels(image.shape)} pixels (height x width) but {self.first_file} has "
                f"{_pixels(self.shape)}; all need one size: give --size {min(self.shape[1:])}, for example"
            )
        if image.shape[0] < self.shape[0]:
            return np.broadcast_to(image, self.shape)  # grey among colour
        if image.shape[0] > self.shape[0]:
            raise DataError(f"{file} has colour but {self.first_file} is grey; give --mode RGB, or --mode L to drop it")
        return image


def _pixels(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[2]}"
