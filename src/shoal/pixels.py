"""What a pixel is: uint8 NCHW at rest, float in the preset's range in nets, [0, 1] in every reported measure."""

from typing import Literal

import torch
from torch import Tensor

PixelRange = Literal["unit", "symmetric"]
"""``unit`` is [0, 1] (sigmoid outputs), ``symmetric`` is [-1, 1] (tanh outputs)."""


def to_float(pixels: Tensor, pixel_range: PixelRange) -> Tensor:
    """Turn uint8 pixels of any shape into float32 in the range."""
    # A copying conversion, then arithmetic in place: twice as fast as a mixed-type multiplication.
    result = pixels.to(torch.float32)
    if pixel_range == "unit":
        return result.mul_(1 / 255)
    return result.mul_(2 / 255).sub_(1)


def to_unit(images: Tensor, pixel_range: PixelRange) -> Tensor:
    """Bring images in the range to [0, 1]."""
    return images if pixel_range == "unit" else (images + 1) / 2


def to_uint8(images: Tensor, pixel_range: PixelRange) -> Tensor:
    """Round images in the range to uint8, clipping what lies outside."""
    return (to_unit(images, pixel_range).float() * 255).round().clamp(0, 255).to(torch.uint8)


def squash(logits: Tensor, pixel_range: PixelRange) -> Tensor:
    """Map a decoder's unbounded outputs into the range: sigmoid for ``unit``, tanh for ``symmetric``."""
    return torch.sigmoid(logits) if pixel_range == "unit" else torch.tanh(logits)
