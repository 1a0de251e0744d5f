"""Decode one image file into the uint8 array that a data set holds."""

import io
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from shoal.errors import DataError

Mode = Literal["L", "RGB"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
_GREY = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"})
_WIDE = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})


class BadImageError(Exception):
    """A file that is not a whole PNG or JPEG."""


def decode(file: Path | bytes, mode: Mode | None, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Return an image file, by its path or as its bytes, as uint8 [C, H, W].

    ``mode`` is "L" or "RGB", or None for what the file is (grey or colour). Cameras' orientation is applied, 16 bits
    are rounded to 8, transparency is composited on white. With ``size`` (height, width) the largest centred part of
    that aspect ratio is resized to it with an antialiasing Lanczos filter. Raises BadImageError.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=("PNG", "JPEG")) as opened:
            opened.load()
            image = convert(ImageOps.exif_transpose(opened), mode)
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        what = "not a PNG or JPEG" if isinstance(error, UnidentifiedImageError) else str(error)
        raise BadImageError(what) from None
    if size is not None and (image.height, image.width) != size:
        image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def convert(image: Image.Image, mode: Mode | None) -> Image.Image:
    """Return ``image`` as mode "L" or "RGB"; ``mode`` None keeps grey images grey and makes the others RGB."""
    target: Mode = mode or ("L" if image.mode in _GREY else "RGB")
    if image.mode in _WIDE:  # PIL's own conversion clips at 255
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), coloured)
    return image.convert(target)


def check_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return a size, in pixels, as (height, width); a single number means a square. Raises DataError below 1."""
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise DataError(f"size {height}x{width} must be at least 1x1 pixels; give --size 64, for example")
    return height, width
