"""Import a NumPy .npz archive of uint8 images."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shoal.data.importers.class_names import names_for
from shoal.data.manifest import Manifest
from shoal.data.write import Chunk, Progress, check_destination, write_dataset
from shoal.errors import DataError

NAMES = {
    "train": (("images", "labels"), ("x_train", "y_train"), ("train_images", "train_labels")),
    "val": (("x_val", "y_val"), ("val_images", "val_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}
"""The names that the arrays of each split go by: images and labels."""


def import_npz(
    src: Path, out: Path, *, class_names: Sequence[str] | None = None, progress: Progress | None = None
) -> Manifest:
    """Import the arrays of ``src`` whose names are in ``NAMES``; each pair present makes its split.

    Images are uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels; labels are integers [N] or [N, 1],
    for all splits or for none. Classes without ``class_names`` are called "0", "1", …. The archive is read into
    memory. Raises DataError.
    """
    check_destination(out)
    arrays = _load(src)
    images: dict[str, NDArray[np.uint8]] = {}
    labels: dict[str, NDArray[np.integer]] = {}
    for split, pairs in NAMES.items():
        for image_name, label_name in pairs:
            if image_name in arrays and split not in images:
                images[split] = _as_nchw(f"{src}: {image_name}", arrays[image_name])
                if label_name in arrays:
                    labels[split] = _as_labels(f"{src}: {label_name}", arrays[label_name])
    if not images:
        raise DataError(
            f"{src} holds none of the known arrays; name them images and labels, or x_train, y_train, x_test and y_test"
        )
    if labels and (bare := set(images) - set(labels)):
        raise DataError(f"{src} has labels, but none for split {', '.join(sorted(bare))}; give labels to all or none")
    names = names_for(labels.values(), None if class_names is None else list(class_names)) if labels else None
    chunks: dict[str, list[Chunk]] = {split: [(pixels, labels.get(split))] for split, pixels in images.items()}
    channels, height, width = next(iter(images.values())).shape[1:]
    return write_dataset(
        out, chunks, shape=(channels, height, width), class_names=names, source="npz", progress=progress
    )


def _load(src: Path) -> dict[str, NDArray[np.generic]]:
    known = {name for pairs in NAMES.values() for pair in pairs for name in pair}
    try:
        with src.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise DataError(f"{src} is a single .npy array; save it with np.savez(file, images=array)")
            return {name: archive[name] for name in archive.files if name in known}
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{src} does not exist; give the path of an .npz file") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{src} is not readable as an .npz file of plain arrays: {error}; save it with np.savez"
        ) from None


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


def _as_labels(name: str, array: NDArray[np.generic]) -> NDArray[np.integer]:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"{name} is {array.dtype} of shape {list(array.shape)}, labels must be integers [N]; "
            "give class numbers from 0"
        )
    return np.asarray(array, np.int64)
