"""Import the idx files that MNIST and its relatives come in.

http://yann.lecun.com/exdb/mnist: two zero bytes, a type (8: uint8), the number of dimensions, each dimension as a
big-endian int32, then the values.
"""

import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from shoal.data.importers.class_names import names_for
from shoal.data.importers.source import Rows
from shoal.errors import DataError

FILES = {"train": "train", "test": "t10k"}
"""Split to the first word of its files' names."""

PIECE_BYTES = 1 << 20
UNIT_BYTES = 16 << 20

GZIP_MAGIC = b"\x1f\x8b"


class IdxUnit(NamedTuple):
    """Rows ``start .. stop - 1`` of a split; of a gzipped file all, since it is read from its start."""

    split: str
    start: int
    stop: int


@dataclass(frozen=True)
class IdxSource:
    """The images and labels files of each split, as ``open_idx`` found them; see ``source.Source``."""

    src: Path
    images: dict[str, Path]
    labels: dict[str, Path]
    shape: tuple[int, int, int]
    class_names: Sequence[str] | None
    splits: Sequence[str]
    units: Sequence[IdxUnit]
    num_rows: int
    kind: str = "idx"
    encoded: bool = False

    def read(self, unit: IdxUnit) -> Iterator[Rows]:
        """Yield the rows of a unit."""
        labels = read_idx(self.labels[unit.split], 1) if unit.split in self.labels else None
        row_bytes = math.prod(self.shape)
        rows_per_piece = max(1, PIECE_BYTES // row_bytes)
        file = self.images[unit.split]
        with _open(file) as stream:
            _shape(file, stream, 3)
            stream.seek(unit.start * row_bytes, 1)
            for start in range(unit.start, unit.stop, rows_per_piece):
                num = min(rows_per_piece, unit.stop - start)
                data = _read_exactly(file, stream, num * row_bytes)
                images = np.frombuffer(data, np.uint8).reshape(num, *self.shape)
                yield Rows(unit.split, images, None if labels is None else labels[start : start + num])
            if unit.start == 0 and stream.read(1) and _is_gzipped(file):
                raise DataError(f"{file} has more bytes than its header says; fetch it again")


def open_idx(src: Path, *, class_names: Sequence[str] | None = None) -> IdxSource:
    """Open a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and the t10k- pair, gzipped or not.

    Its splits are train and test, of grey images [1, H, W]. Files of one of the two may be missing, labels only those
    of all. Classes without ``class_names`` are called "0", "1", …. Raises DataError for what is missing or malformed.
    """
    if not src.is_dir():
        raise DataError(f"{src} is not a directory; give the folder that holds train-images-idx3-ubyte[.gz]")
    images = {split: file for split, word in FILES.items() if (file := find_idx(src, word, "images"))}
    labels = {split: file for split in images if (file := find_idx(src, FILES[split], "labels"))}
    if not images:
        raise DataError(f"{src} has no train-images-idx3-ubyte[.gz]; give the folder that holds the idx files")
    if labels and (bare := set(images) - set(labels)):
        raise DataError(f"{src} has labels, but none for split {', '.join(bare)}; add {FILES[bare.pop()]}-labels-…")
    shapes = {split: _checked_shape(file, 3) for split, file in images.items()}
    numbers = {split: read_idx(file, 1) for split, file in labels.items()}
    for split, values in numbers.items():
        if len(values) != shapes[split][0]:
            raise DataError(
                f"split '{split}' of {src}: {shapes[split][0]:,} images but {len(values):,} labels; give one label for "
                "each image"
            )
    height, width = shapes[next(iter(images))][1:]
    for split, shape in shapes.items():
        if shape[1:] != (height, width):
            raise DataError(
                f"{images[split]}: images of shape {[1, *shape[1:]]} do not fit the data set's {[1, height, width]}; "
                "all images must be alike"
            )
    units = []
    for split, (rows, *_) in shapes.items():
        step = rows if _is_gzipped(images[split]) else max(1, UNIT_BYTES // (height * width))
        units += [IdxUnit(split, start, min(start + step, rows)) for start in range(0, rows, max(1, step))]
    names = names_for(numbers.values(), None if class_names is None else list(class_names)) if labels else None
    num_rows = sum(shape[0] for shape in shapes.values())
    return IdxSource(src, images, labels, (1, height, width), names, list(images), units, num_rows)


def find_idx(folder: Path, word: str, kind: str) -> Path | None:
    """Return the images or labels file of ``word`` (train or t10k) under one of its usual names, or None."""
    num = {"images": 3, "labels": 1}[kind]
    stems = (f"{word}-{kind}-idx{num}-ubyte", f"{word}-{kind}.idx{num}-ubyte")
    return next((file for stem in stems for end in ("", ".gz") if (file := folder / (stem + end)).is_file()), None)


def read_idx(file: Path, num_dims: int) -> NDArray[np.uint8]:
    """Return a uint8 idx file, gzipped or not, as an array of ``num_dims`` dimensions. Raises DataError otherwise."""
    shape = _checked_shape(file, num_dims)
    with _open(file) as stream:
        _shape(file, stream, num_dims)
        data = _read_exactly(file, stream, math.prod(shape))
        if stream.read(1):
            raise DataError(f"{file} has more bytes than its header {list(shape)} says; fetch it again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _checked_shape(file: Path, num_dims: int) -> tuple[int, ...]:
    """Return what the header says. Raises DataError where it is not that of such a file, or the length is another."""
    with _open(file) as stream:
        shape = _shape(file, stream, num_dims)
    expected = 4 + 4 * num_dims + math.prod(shape)
    found = file.stat().st_size
    if not _is_gzipped(file) and found != expected:
        raise DataError(f"{file} has {found:,} bytes, its header {list(shape)} says {expected:,}; fetch it again")
    return shape


def _shape(file: Path, stream: IO[bytes], num_dims: int) -> tuple[int, ...]:
    head = stream.read(4 + 4 * num_dims)
    magic = bytes([0, 0, 8, num_dims])
    if head[:4] != magic:
        raise DataError(
            f"{file} starts with {head[:4].hex() or 'nothing'}, an idx file of uint8 in {num_dims} dimensions with "
            f"{magic.hex()}; fetch it again, or check that images and labels are not swapped"
        )
    shape = tuple(int(size) for size in np.frombuffer(head[4:].ljust(4 * num_dims, b"\0"), ">i4"))
    if len(head) < 4 + 4 * num_dims or min(shape) < 0:
        raise DataError(f"{file} has {len(head):,} bytes of a header, {list(shape)}, which is none; fetch it again")
    return shape


def _is_gzipped(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(2) == GZIP_MAGIC


@contextmanager
def _open(file: Path) -> Iterator[IO[bytes]]:
    try:
        with cast(IO[bytes], gzip.open(file) if _is_gzipped(file) else file.open("rb")) as stream:
            yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file} is not a whole gzip file: {error}; fetch it again") from None


def _read_exactly(file: Path, stream: IO[bytes], num_bytes: int) -> bytes:
    data = stream.read(num_bytes)
    if len(data) < num_bytes:
        raise DataError(f"{file} ends before its header says; fetch it again")
    return data
