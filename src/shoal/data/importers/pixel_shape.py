"""What shape pixels have that lie in some order of axes, and those pixels as [n, C, H, W]."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shoal.errors import DataError

CHANNELS = (1, 3)

Shape = tuple[int, int, int]


def check_shape(shape: Sequence[int]) -> Shape:
    """Return a shape as (C, H, W). Raises DataError for other than three numbers of at least 1."""
    if len(shape) != 3 or min(shape) < 1:
        raise DataError(f"shape {list(shape)} must be channels, height and width; give 3,32,32 for example")
    return (shape[0], shape[1], shape[2])


def shape_of(name: str, sizes: Sequence[int]) -> Shape:
    """Return the shape (C, H, W) that images of these sizes have: [H, W], [C, H, W] or [H, W, C], with C 1 or 3.

    Raises DataError where more than one shape, or none, is possible.
    """
    if len(sizes) == 2:
        return check_shape((1, *sizes))
    if len(sizes) == 3:
        first, last = sizes[0] in CHANNELS, sizes[2] in CHANNELS
        if first != last:
            return check_shape(sizes if first else (sizes[2], sizes[0], sizes[1]))
        rule = "either end could be the channels" if first else "the channels are 1 or 3, at either end"
    else:
        rule = "that says no height and width"
    sides = {channels: math.isqrt(math.prod(sizes) // channels) for channels in CHANNELS}
    square = [f"{c},{side},{side}" for c, side in sides.items() if c * side * side == math.prod(sizes) and side > 1]
    raise DataError(
        f"{name}: images of {' x '.join(map(str, sizes))} values: {rule}; give the shape as channels, height and "
        f"width: --shape {' or '.join(square) or 'C,H,W'}"
    )


def as_nchw(name: str, pixels: NDArray[np.uint8], shape: Shape) -> NDArray[np.uint8]:
    """Return uint8 [n, …] as [n, C, H, W]; channels that come last in every image are moved. Raises DataError."""
    channels, height, width = shape
    if pixels.shape[1:] == (height, width, channels) and (height, width, channels) != shape:
        return pixels.transpose(0, 3, 1, 2)
    if len(pixels) == 0:
        return np.empty((0, *shape), np.uint8)
    if pixels.size != len(pixels) * math.prod(shape):
        sizes = " x ".join(map(str, pixels.shape[1:]))
        raise DataError(f"{name}: images of {sizes} values do not have the shape {list(shape)}; all must have it")
    if pixels.ndim > 2 and pixels.shape[1:] not in (shape, shape[1:]):
        raise DataError(f"{name}: images of {list(pixels.shape[1:])} do not have the shape {list(shape)}")
    return pixels.reshape(-1, *shape)
