"""Import the idx files that MNIST and its relatives come in.

http://yann.lecun.com/exdb/mnist: two zero bytes, a type (8: uint8), the number of dimensions, each dimension as a
big-endian int32, then the values.
"""

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shoal.data.importers.class_names import names_for
from shoal.data.manifest import Manifest
from shoal.data.write import Chunk, Progress, check_destination, write_dataset
from shoal.errors import DataError

FILES = {"train": "train", "test": "t10k"}
"""Split to the first word of its files' names."""


def import_idx(
    src: Path,
    out: Path,
    *,
    class_names: Sequence[str] | None = None,
    source: str = "idx",
    progress: Progress | None = None,
) -> Manifest:
    """Import a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and the t10k- pair, gzipped or not.

    Makes the splits train and test, of grey images [1, H, W]. Files of one of the two may be missing, labels only those
    of all. Classes without ``class_names`` are called "0", "1", …. Raises DataError for what is missing or malformed.
    """
    check_destination(out)
    if not src.is_dir():
        raise DataError(f"{src} is not a directory; give the folder that holds train-images-idx3-ubyte[.gz]")
    images: dict[str, NDArray[np.uint8]] = {}
    labels: dict[str, NDArray[np.uint8]] = {}
    for split, word in FILES.items():
        if file := find_idx(src, word, "images"):
            images[split] = read_idx(file, 3)
            if file := find_idx(src, word, "labels"):
                labels[split] = read_idx(file, 1)
    if not images:
        raise DataError(f"{src} has no train-images-idx3-ubyte[.gz]; give the folder that holds the idx files")
    if labels and (bare := set(images) - set(labels)):
        raise DataError(f"{src} has labels, but none for split {', '.join(bare)}; add {FILES[bare.pop()]}-labels-…")
    names = names_for(labels.values(), None if class_names is None else list(class_names)) if labels else None
    height, width = next(iter(images.values())).shape[1:]
    chunks: dict[str, list[Chunk]] = {split: [(pixels[:, None], labels.get(split))] for split, pixels in images.items()}
    return write_dataset(out, chunks, shape=(1, height, width), class_names=names, source=source, progress=progress)


def find_idx(folder: Path, word: str, kind: str) -> Path | None:
    """Return the images or labels file of ``word`` (train or t10k) under one of its usual names, or None."""
    num = {"images": 3, "labels": 1}[kind]
    stems = (f"{word}-{kind}-idx{num}-ubyte", f"{word}-{kind}.idx{num}-ubyte")
    return next((file for stem in stems for end in ("", ".gz") if (file := folder / (stem + end)).is_file()), None)


def read_idx(file: Path, num_dims: int) -> NDArray[np.uint8]:
    """Return a uint8 idx file, gzipped or not, as an array of ``num_dims`` dimensions. Raises DataError otherwise."""
    data = file.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{file} is not a whole gzip file: {error}; fetch it again") from None
    magic = bytes([0, 0, 8, num_dims])
    if data[:4] != magic:
        raise DataError(
            f"{file} starts with {data[:4].hex() or 'nothing'}, an idx file of uint8 in {num_dims} dimensions with "
            f"{magic.hex()}; fetch it again, or check that images and labels are not swapped"
        )
    start = 4 + 4 * num_dims
    shape = tuple(int(size) for size in np.frombuffer(data[4:start].ljust(4 * num_dims, b"\0"), ">i4"))
    expected = start + math.prod(shape)
    if min(shape) < 0 or len(data) != expected:
        raise DataError(f"{file} has {len(data):,} bytes, its header {list(shape)} says {expected:,}; fetch it again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
