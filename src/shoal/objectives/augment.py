"""DiffAugment: the discriminator sees every image changed, the generator is taught through the change.

Zhao et al. 2020 (arXiv:2006.10738). Real and generated images pass through the same random transformations in both
phases, so a small data set is not learned by heart and the changes do not leak into the samples.

The paper's strengths are for pixels in [-1, 1]; in ``unit`` range they are halved, and what comes in from outside is
black in both (the paper fills with 0, which is grey there), so the range of a preset does not change what is learned.
Nothing is clipped, as in the paper. Every transformation has static shapes and takes its own uniforms per image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shoal.noise import Noise
from shoal.pixels import PixelRange

AugmentationName = Literal["color", "translation", "cutout"]

BRIGHTNESS = 0.5
"""Largest change of brightness either way, of pixels in [-1, 1]."""
SATURATION = 2.0
"""Saturation is multiplied by 0 to this."""
CONTRAST = (0.5, 1.5)
"""Contrast is multiplied by a factor between these."""
TRANSLATION = 1 / 8
"""Largest shift along each axis, as a share of the image."""
CUTOUT = 1 / 2
"""Side of the black square, as a share of the image."""


def color(images: Tensor, uniforms: Tensor, pixel_range: PixelRange) -> Tensor:
    """Change brightness, saturation and contrast, in this order, each image by its own amounts.

    Args:
        images: [n, C, H, W] float in the range.
        uniforms: [n, 3] in [0, 1).
        pixel_range: of the images.
    """
    brightness, saturation, contrast = uniforms.to(images.dtype)[:, :, None, None, None].unbind(1)
    strength = BRIGHTNESS if pixel_range == "symmetric" else BRIGHTNESS / 2
    images = images + (2 * brightness - 1) * strength
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (saturation * SATURATION)
    middle = images.mean((1, 2, 3), keepdim=True)
    low, high = CONTRAST
    return middle + (images - middle) * (low + (high - low) * contrast)


def translation(images: Tensor, uniforms: Tensor, pixel_range: PixelRange) -> Tensor:
    """Shift each image by whole pixels, up to an eighth of its size each way; what comes in is black.

    Args:
        images: [n, C, H, W] float in the range.
        uniforms: [n, 2] in [0, 1), down and to the right.
        pixel_range: of the images.
    """
    height, width = images.shape[-2:]
    rows, rows_inside = _shifted(uniforms[:, 0], height)
    columns, columns_inside = _shifted(uniforms[:, 1], width)
    # Rolled, so that no pixel is read twice and the gradient is a permutation too; then black where it came around.
    images = images.gather(2, rows[:, None, :, None].expand_as(images))
    images = images.gather(3, columns[:, None, None, :].expand_as(images))
    return torch.where(_outer(rows_inside, columns_inside), images, _black(pixel_range))


def cutout(images: Tensor, uniforms: Tensor, pixel_range: PixelRange) -> Tensor:
    """Blacken a square of half the size in each image, anywhere; it may stick out by half of itself.

    Args:
        images: [n, C, H, W] float in the range.
        uniforms: [n, 2] in [0, 1), of the middle's row and column.
        pixel_range: of the images.
    """
    height, width = images.shape[-2:]
    inside = _outer(_covered(uniforms[:, 0], height), _covered(uniforms[:, 1], width))
    return torch.where(inside, _black(pixel_range), images)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A random transformation of images and how many uniforms it takes for each."""

    apply: Callable[[Tensor, Tensor, PixelRange], Tensor]
    uniforms: int


AUGMENTATIONS: Mapping[AugmentationName, Augmentation] = {
    "color": Augmentation(apply=color, uniforms=3),
    "translation": Augmentation(apply=translation, uniforms=2),
    "cutout": Augmentation(apply=cutout, uniforms=2),
}


def augment(
    images: Tensor, names: Sequence[AugmentationName], noise: Noise, purpose: str, pixel_range: PixelRange
) -> Tensor:
    """Apply the named transformations one after another, drawn for each image anew.

    Args:
        images: [n, C, H, W] float in the range, the rows that ``noise`` draws for.
        names: in the order of application; empty: the images as they are.
        noise: of the global batch.
        purpose: of the draws; each transformation has draws of its own below it.
        pixel_range: of the images.
    """
    for name in names:
        chosen = AUGMENTATIONS[name]
        images = chosen.apply(images, noise.uniform(f"{purpose}/{name}", chosen.uniforms), pixel_range)
    return images


def _shifted(uniforms: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return where each place of an axis reads from, int64 [n, size], and whether that lies inside."""
    most = round(size * TRANSLATION)
    shift = (uniforms * (2 * most + 1)).floor().long() - most
    source = torch.arange(size, device=uniforms.device) - shift[:, None]
    return source.remainder(size), (source >= 0) & (source < size)


def _covered(uniforms: Tensor, size: int) -> Tensor:
    """Return which places of an axis the square covers, bool [n, size]."""
    side = round(size * CUTOUT)
    # A square of even side has its middle between two pixels, so there is one place more for it.
    first = (uniforms * (size + 1 - side % 2)).floor().long() - side // 2
    place = torch.arange(size, device=uniforms.device)
    return (place >= first[:, None]) & (place < first[:, None] + side)


def _outer(rows: Tensor, columns: Tensor) -> Tensor:
    """Return which pixels lie in both, bool [n, 1, H, W]."""
    return rows[:, None, :, None] & columns[:, None, None, :]


def _black(pixel_range: PixelRange) -> float:
    return -1.0 if pixel_range == "symmetric" else 0.0
