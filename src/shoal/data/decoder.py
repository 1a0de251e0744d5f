"""Turn the files of an encoded data set into pixels."""

import io
import os
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from shoal.data.shard import Bytes

MOST_THREADS = 8
ROWS_PER_TASK = 8
"""Enough work for a thread to be worth waking up, little enough for the last one not to be waited for."""

_READERS: dict[bytes, type[ImageFile.ImageFile]] = {b"\xff\xd8\xff": JpegImageFile, b"\x89PNG\r\n\x1a\n": PngImageFile}
_MODES = {1: "L", 3: "RGB"}
_ASKS_FOR_MORE = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif", "transparency"}
"""Where an orientation or transparent pixels may be written down."""


class DecodeError(Exception):
    """A file that does not become the row that it is to be: says why."""


class Decoder(Protocol):
    """What turns one file into one row; used by several threads at once."""

    def decode(self, file: Bytes, out: NDArray[np.uint8]) -> None:
        """Write the pixels of ``file`` into ``out``, uint8 [C, H, W]. Raises DecodeError."""


class PillowDecoder:
    """Decode PNG and JPEG by Pillow to grey (one channel) or RGB (three), exactly as an import to raw rows would.

    The shape must be that of the row: nothing is resized. An orientation is applied, 16 bits are rounded to 8,
    transparency is composited on white.
    """

    def decode(self, file: Bytes, out: NDArray[np.uint8]) -> None:
        """Write the pixels of ``file`` into ``out``, uint8 [C, H, W]. Raises DecodeError."""
        channels, height, width = out.shape
        try:
            image: Image.Image = _opened(file)
            if image.width * image.height != width * height:  # known before any pixel is decoded
                raise _other_shape(image, out)
            if image.mode != _MODES[channels] or not _ASKS_FOR_MORE.isdisjoint(image.info):
                image = _converted(image, _MODES[channels])
            if image.size != (width, height):
                raise _other_shape(image, out)
            pixels = np.frombuffer(image.tobytes(), np.uint8)
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
            raise DecodeError(str(error)) from None
        out[:] = pixels.reshape(height, width, channels).transpose(2, 0, 1)


def decode_rows(decoder: Decoder, files: Sequence[Bytes], out: Sequence[NDArray[np.uint8]]) -> None:
    """Decode ``files`` into ``out``, uint8 [C, H, W] each, in as many threads as this process has processors.

    Raises:
        RowError: the first row, in their order, whose file is not one.
    """
    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)))
    firsts = range(0, len(files), ROWS_PER_TASK)
    if threads == 1 or len(firsts) <= 1:
        _decode_some(decoder, files, out, 0, len(files))
        return
    tasks = [
        _pool(os.getpid(), threads).submit(_decode_some, decoder, files, out, first, first + ROWS_PER_TASK)
        for first in firsts
    ]
    errors = [error for task in tasks if (error := task.exception()) is not None]
    if errors:
        raise errors[0]


class RowError(Exception):
    """Row ``row`` of the ones that were to be decoded is not an image: says why."""

    def __init__(self, row: int, why: str) -> None:
        super().__init__(row, why)
        self.row = row
        self.why = why


def _decode_some(
    decoder: Decoder, files: Sequence[Bytes], out: Sequence[NDArray[np.uint8]], first: int, stop: int
) -> None:
    for row in range(first, min(stop, len(files))):
        try:
            decoder.decode(files[row], out[row])
        except DecodeError as error:
            raise RowError(row, str(error)) from None


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    # Asked for by process: a forked child inherits the pool without its threads, and would wait for them for ever.
    return ThreadPoolExecutor(threads, "shoal-decode")


def _opened(file: Bytes) -> ImageFile.ImageFile:
    # Not Image.open: it asks the formats in turn and, for a row of 64x64, costs as much as a tenth of the decoding.
    for magic, reader in _READERS.items():
        if file[: len(magic)].tobytes() == magic:
            return reader(io.BytesIO(file.data))
    raise DecodeError("is not a PNG or JPEG")


def _converted(image: Image.Image, mode: str) -> Image.Image:
    from shoal.data.importers.images import convert  # the importers import this package

    return convert(ImageOps.exif_transpose(image), "L" if mode == "L" else "RGB")


def _other_shape(image: Image.Image, out: NDArray[np.uint8]) -> DecodeError:
    return DecodeError(f"is {image.height}x{image.width} pixels where the data set has {out.shape[1]}x{out.shape[2]}")
