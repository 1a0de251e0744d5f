"""Image files, as bytes out of some container, become rows of one shape."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from shoal.data.importers.images import BadImageError, Mode, check_size, decode
from shoal.data.importers.source import Rows
from shoal.errors import DataError

PIECE_BYTES = 4 << 20
"""How much, of pixels or of files that are kept, is collected before it is handed on."""

Item = tuple[str, bytes | None, int]
"""The name of an image for messages, its file, or None where it is missing, and its label or -1."""


@dataclass(frozen=True)
class ImageFiles:
    """How the image files of a source become rows.

    Attributes:
        shape: (C, H, W) that all must have.
        first: the name of the image that the shape was taken of.
        mode: "L" or "RGB", or None: grey images among colour are made colour, colour among grey is refused.
        size: height and width that images are cropped and resized to, or None.
        skip_bad: leave out, and count, what cannot be read, instead of refusing it.
        keep_encoded: hand on the files as they are, once they have been decoded to see that they can be.
    """

    shape: tuple[int, int, int]
    first: str
    mode: Mode | None
    size: tuple[int, int] | None
    skip_bad: bool
    keep_encoded: bool

    @classmethod
    def like_first(
        cls,
        items: Iterable[Item],
        source: str,
        *,
        mode: Mode | None,
        size: int | tuple[int, int] | None,
        skip_bad: bool,
        keep_encoded: bool,
    ) -> "ImageFiles":
        """Take the shape from the first of the items that can be read.

        Raises DataError for settings that make no sense, an unreadable image unless those are skipped, and a source
        without a readable one.
        """
        if mode is not None and mode not in get_args(Mode):
            raise DataError(f"mode '{mode}' is not known; give L for grey or RGB for colour")
        if keep_encoded and size is not None:
            raise DataError(
                f"size {size} would change the files that keep_encoded keeps as they are; leave out one of the two"
            )
        wanted = check_size(size)
        num_bad = 0
        for name, file, _ in items:
            try:
                channels, height, width = _decode(file, mode, wanted).shape
            except BadImageError as error:
                if not skip_bad:
                    raise _unreadable(name, error) from None
                num_bad += 1
                continue
            return cls((channels, height, width), name, mode, wanted, skip_bad, keep_encoded)
        tried = f"none of its {num_bad:,} images can be read" if num_bad else "it has no images"
        raise DataError(f"{source}: {tried}; check the files")

    def rows(self, split: str, items: Iterable[Item], *, labelled: bool) -> Iterator[Rows]:
        """Yield the items, in their order, in pieces of about ``PIECE_BYTES``. Raises DataError that names the item."""
        pixels: list[NDArray[np.uint8]] = []
        files: list[bytes] = []
        labels: list[int] = []
        num_bytes = num_skipped = 0

        def piece() -> Rows:
            images = files if self.keep_encoded else np.stack(pixels) if pixels else np.empty((0, *self.shape), "u1")
            return Rows(split, images, np.array(labels, np.int64) if labelled else None, num_skipped)

        for name, file, label in items:
            try:
                image = self._fit(name, _decode(file, self.mode, self.size))
            except BadImageError as error:
                if not self.skip_bad:
                    raise _unreadable(name, error) from None
                num_skipped += 1
                continue
            assert file is not None
            labels.append(label)
            if self.keep_encoded:
                files.append(file)
            else:
                pixels.append(image)
            num_bytes += len(file) if self.keep_encoded else image.nbytes
            if num_bytes >= PIECE_BYTES:
                yield piece()
                pixels, files, labels, num_bytes, num_skipped = [], [], [], 0, 0
        if labels or num_skipped:
            yield piece()

    def _fit(self, name: str, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return an image with the channels that all have, or refuse it."""
        if image.shape[1:] != self.shape[1:]:
            remedy = f"give --size {min(self.shape[1:])}, for example" + ", without --keep-encoded" * self.keep_encoded
            raise DataError(
                f"{name} has {image.shape[1]}x{image.shape[2]} pixels (height x width) but {self.first} has "
                f"{self.shape[1]}x{self.shape[2]}; all need one size: {remedy}"
            )
        if image.shape[0] > self.shape[0]:
            raise DataError(f"{name} has colour but {self.first} is grey; give --mode RGB, or --mode L to drop it")
        return np.broadcast_to(image, self.shape)


def _decode(file: bytes | None, mode: Mode | None, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    if file is None:
        raise BadImageError("it is missing")
    return decode(file, mode, size)


def _unreadable(name: str, error: BadImageError) -> DataError:
    return DataError(f"{name} cannot be read: {error}; replace or delete it, or leave out such images with --skip-bad")


def printable(name: str) -> str:
    """Return a name out of a container as it is, or escaped where it could play tricks on a terminal."""
    return name if name.isprintable() else ascii(name)
