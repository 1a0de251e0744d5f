"""One item of a PyTorch data set as pixels and a label."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shoal.data.importers.images import convert
from shoal.data.importers.pixel_shape import CHANNELS
from shoal.errors import DataError

IMAGE_KEYS = ("image", "img", "images", "pixel_values", "x")
LABEL_KEYS = ("label", "labels", "target", "class", "y")
"""The keys of items that are mappings, in the order in which they are looked for."""


def split_item(name: str, item: object) -> tuple[object, object]:
    """Return the image and the label, None for none, of an item: an image, a pair, or a mapping. Raises DataError."""
    if isinstance(item, Mapping):
        image_key = next((key for key in IMAGE_KEYS if key in item), None)
        if image_key is None:
            raise DataError(
                f"{name} has the keys {', '.join(map(str, item))}; an image goes by {', '.join(IMAGE_KEYS)}"
            )
        label_key = next((key for key in LABEL_KEYS if key in item), None)
        return item[image_key], None if label_key is None else item[label_key]
    if isinstance(item, tuple | list):
        if not 1 <= len(item) <= 2:
            raise DataError(f"{name} has {len(item)} parts; return the image, (image, label), or a dictionary")
        return item[0], item[1] if len(item) == 2 else None
    return item, None


def to_pixels(name: str, image: object) -> NDArray[np.uint8]:
    """Return an image as uint8 [C, H, W] with C 1 or 3.

    PIL images become grey or RGB as ``images.convert`` says. Tensors and arrays are [H, W], [C, H, W] or [H, W, C];
    where both ends could be the channels, a tensor has them first and an array last. They are uint8, or floats that
    stand for 0 to 255 as 0 to 1: x * 255 is rounded to the nearest, which gives back what ``ToTensor`` was given, and
    is refused beyond 0 and 255. Raises DataError.
    """
    if isinstance(image, Image.Image):
        pixels = np.asarray(convert(image, None))
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    is_tensor = _is_tensor(image)
    if is_tensor:
        image = _from_tensor(image)
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"{name}: the image is a {type(image).__name__}; return a PIL image, a tensor or an array of uint8, or of "
            "floats from 0 to 1"
        )
    return _channels_first(name, _to_uint8(name, image), is_tensor)


def to_label(name: str, label: object, names: Sequence[str] | None) -> int:
    """Return a label as a class number, -1 for none: an integer, one element, or one of ``names``. Raises DataError."""
    if label is None:
        return -1
    if _is_tensor(label):
        label = _from_tensor(label)
    if isinstance(label, np.ndarray | np.generic) and label.size == 1:
        label = label.item()
    if isinstance(label, str) and names is not None and label in names:
        return names.index(label)
    if isinstance(label, bool) or not isinstance(label, int):
        known = "" if names is None else f", or one of {', '.join(names[:8])}{', …' * (len(names) > 8)}"
        raise DataError(f"{name}: the label is {label!r:.60}; return the number of the class{known}")
    if not -1 <= label < len(names or [0]):
        raise DataError(f"{name}: the label is {label}, but {len(names or [])} classes have names; name all classes")
    return label


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")  # nobody who has not imported it can hold a tensor, and it is slow to import
    return torch is not None and isinstance(value, torch.Tensor)


def _from_tensor(tensor: Any) -> NDArray[np.generic]:
    tensor = tensor.detach().cpu()
    array: NDArray[np.generic] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array


def _to_uint8(name: str, image: NDArray[np.generic]) -> NDArray[np.uint8]:
    if image.dtype == np.uint8:
        return np.asarray(image, np.uint8)
    if not np.issubdtype(image.dtype, np.floating):
        raise DataError(f"{name}: the image is {image.dtype}; return uint8 in 0 to 255, or floats in 0 to 1")
    levels = np.rint(np.asarray(image, np.float64) * 255)
    if levels.size and not (levels.min() >= 0 and levels.max() <= 255):  # not a number is neither
        low, high = float(np.min(image)), float(np.max(image))
        raise DataError(
            f"{name}: the image has floats from {low:g} to {high:g}, which must be from 0 to 1; leave Normalize out of "
            "the transforms, or return uint8"
        )
    return levels.astype(np.uint8)


def _channels_first(name: str, pixels: NDArray[np.uint8], is_tensor: bool) -> NDArray[np.uint8]:
    if pixels.ndim == 2:
        return pixels[None]
    first, last = (pixels.ndim == 3 and pixels.shape[axis] in CHANNELS for axis in (0, -1))
    if not (first or last):
        raise DataError(
            f"{name}: the image has shape {list(pixels.shape)}, not [H, W], [C, H, W], [H, W, C] with C 1 or 3"
        )
    return pixels if first and (is_tensor or not last) else pixels.transpose(2, 0, 1)
