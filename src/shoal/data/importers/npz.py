"""Import a NumPy .npz archive of uint8 images."""

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from shoal.data.importers.class_names import names_for
from shoal.data.importers.source import Rows
from shoal.errors import DataError

NAMES = {
    "train": (("images", "labels"), ("x_train", "y_train"), ("train_images", "train_labels")),
    "val": (("x_val", "y_val"), ("val_images", "val_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}
"""The names that the arrays of each split go by: images and labels."""

PIECE_BYTES = 1 << 20


class NpzUnit(NamedTuple):
    """All images of a split: an archive is read from its start."""

    split: str
    images: str
    labels: str | None


@dataclass(frozen=True)
class NpzSource:
    """The arrays that ``open_npz`` found; see ``source.Source``."""

    src: Path
    shape: tuple[int, int, int]
    class_names: Sequence[str] | None
    splits: Sequence[str]
    units: Sequence[NpzUnit]
    num_rows: int
    kind: str = "npz"
    encoded: bool = False

    def read(self, unit: NpzUnit) -> Iterator[Rows]:
        """Yield the rows of a unit."""
        with _archive(self.src) as archive:
            labels = None if unit.labels is None else _as_labels(f"{self.src}: {unit.labels}", archive, unit.labels)
            start = 0
            for images in _images(archive, unit.images):
                pixels = _as_nchw(f"{self.src}: {unit.images}", images)
                stop = start + len(pixels)
                yield Rows(unit.split, pixels, None if labels is None else labels[start:stop])
                start = stop


def open_npz(src: Path, *, class_names: Sequence[str] | None = None) -> NpzSource:
    """Open the arrays of ``src`` whose names are in ``NAMES``; each pair present makes its split.

    Images are uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels; labels are integers [N] or [N, 1],
    for all splits or for none. Classes without ``class_names`` are called "0", "1", …. Raises DataError.
    """
    units: list[NpzUnit] = []
    shapes: list[tuple[int, ...]] = []
    labels: dict[str, NDArray[np.integer]] = {}
    with _archive(src) as archive:
        for split, pairs in NAMES.items():
            there = [(images, names) for images, names in pairs if _has(archive, images)]
            if there:
                image_name, label_name = there[0]
                label = label_name if _has(archive, label_name) else None
                units.append(NpzUnit(split, image_name, label))
                shapes.append(_as_nchw(f"{src}: {image_name}", _stand_in(archive, image_name)).shape)
                if label is not None:
                    labels[split] = _as_labels(f"{src}: {label}", archive, label)
    if not units:
        raise DataError(
            f"{src} holds none of the known arrays; name them images and labels, or x_train, y_train, x_test and y_test"
        )
    if labels and (bare := {unit.split for unit in units} - set(labels)):
        raise DataError(f"{src} has labels, but none for split {', '.join(sorted(bare))}; give labels to all or none")
    for unit, (num, *shape) in zip(units, shapes, strict=True):
        if shape != list(shapes[0][1:]):
            raise DataError(
                f"{src}: {unit.images} holds images of shape {shape}, {units[0].images} of {list(shapes[0][1:])}; "
                "all images must be alike"
            )
        if unit.split in labels and len(labels[unit.split]) != num:
            raise DataError(f"{src}: {num:,} images but {len(labels[unit.split]):,} labels in {unit.labels}")
    names = names_for(labels.values(), None if class_names is None else list(class_names)) if labels else None
    _, channels, height, width = shapes[0]
    num_rows = sum(shape[0] for shape in shapes)
    return NpzSource(src, (channels, height, width), names, [unit.split for unit in units], units, num_rows)


@contextmanager
def _archive(src: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive; what is wrong with it, now or while it is read, is a DataError."""
    try:
        with src.open("rb") as file:
            if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
                raise DataError(f"{src} is a single .npy array; save it with np.savez(file, images=array)")
            with zipfile.ZipFile(file) as archive:
                yield archive
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{src} does not exist; give the path of an .npz file") from None
    except (EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{src} is not readable as an .npz file of plain arrays: {error}; save it with np.savez"
        ) from None


def _has(archive: zipfile.ZipFile, name: str) -> bool:
    return f"{name}.npy" in archive.namelist()


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Return shape, whether the first axis is the fastest, and type of an array."""
    version = npy.read_magic(member)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran_order, dtype = read(member)
    if dtype.hasobject:
        raise ValueError("an array of objects")
    return shape, fortran_order, dtype


def _stand_in(archive: zipfile.ZipFile, name: str) -> NDArray[np.generic]:
    """Return an array of this one's shape and type that takes no memory."""
    with archive.open(f"{name}.npy") as member:
        shape, _, dtype = _header(member)
    return np.broadcast_to(np.zeros((), dtype), shape)


def _images(archive: zipfile.ZipFile, name: str) -> Iterator[NDArray[np.generic]]:
    """Yield the array in pieces along its first axis."""
    with archive.open(f"{name}.npy") as member:
        shape, fortran_order, dtype = _header(member)
        if fortran_order:  # images lie across the whole array
            yield np.frombuffer(member.read(), dtype).reshape(shape, order="F")
            return
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        step = max(1, PIECE_BYTES // row_bytes)
        for start in range(0, shape[0], step):
            num = min(step, shape[0] - start)
            data = member.read(num * row_bytes)
            if len(data) < num * row_bytes:
                raise EOFError(f"{name} ends after {start:,} of {shape[0]:,} images")
            yield np.frombuffer(data, dtype).reshape(num, *shape[1:])
        member.read(1)  # at the end the checksum is compared


def _as_nchw(name: str, array: NDArray[np.generic]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise DataError(
            f"{name} is {array.dtype}, images must be uint8 in 0 to 255; convert it first, "
            "from [0, 1] with (x * 255).round().astype('uint8')"
        )
    pixels: NDArray[np.uint8] = np.asarray(array, np.uint8)
    if pixels.ndim == 3:
        return pixels[:, None]
    first, last = (pixels.ndim == 4 and pixels.shape[axis] in (1, 3) for axis in (1, -1))
    if first == last:
        rule = "both axes could be the channels" if first else "none of [N, H, W], [N, H, W, C], [N, C, H, W]"
        raise DataError(f"{name} has shape {list(array.shape)}: {rule}, with C 1 or 3; reshape it")
    return pixels if first else pixels.transpose(0, 3, 1, 2)


def _as_labels(name: str, archive: zipfile.ZipFile, member: str) -> NDArray[np.integer]:
    with archive.open(f"{member}.npy") as file:
        shape, fortran_order, dtype = _header(file)
        array = np.frombuffer(file.read(), dtype).reshape(shape, order="F" if fortran_order else "C")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"{name} is {array.dtype} of shape {list(array.shape)}, labels must be integers [N]; "
            "give class numbers from 0"
        )
    return np.asarray(array, np.int64)
