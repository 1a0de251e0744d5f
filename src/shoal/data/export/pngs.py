"""The rows of a split as PNG files in memory."""

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shoal.data.dataset import DataSet

PIECE_BYTES = 4 << 20
MAX_THREADS = 8

Piece = tuple[list[bytes], NDArray[np.int32] | None]
"""PNG files, and their labels or None."""


@dataclass(frozen=True)
class Part:
    """Rows to be exported: ids ``first`` to ``first + rows - 1``, which are row ``start`` of the split and on."""

    split: str
    first: int
    rows: int
    start: int

    def file_name(self, row: int) -> str:
        """Return the name of row ``row`` of the part: as many digits for all, so that names sort as rows do."""
        return f"{self.start + row:0{max(6, len(str(self.start + self.rows - 1)))}}.png"


@contextmanager
def pngs(dataset: DataSet, part: Part) -> Iterator[Iterator[Piece]]:
    """Give an iterator of the rows of a part, in order, as PNG files in pieces of about 4 MiB of pixels."""
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        yield _pieces(dataset, part, pool)


def _pieces(dataset: DataSet, part: Part, pool: ThreadPoolExecutor) -> Iterator[Piece]:
    step = max(1, PIECE_BYTES // int(np.prod(dataset.shape)))
    for start in range(0, part.rows, step):
        ids = np.arange(part.first + start, part.first + min(start + step, part.rows))
        yield list(pool.map(to_png, dataset.fetch(ids))), dataset.labels_at(ids)


def to_png(image: NDArray[np.uint8]) -> bytes:
    """Return an image, uint8 [C, H, W] with C 1 or 3, as a PNG file."""
    file = io.BytesIO()
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return file.getvalue()
