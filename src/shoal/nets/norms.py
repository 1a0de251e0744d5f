"""Norms between convolutions."""

from typing import Literal

from torch import nn

from shoal.nets.conditional import ConditionalNorm

Norm = Literal["group", "batch", "none"]


def build_norm(kind: Norm, channels: int, num_classes: int = 0) -> nn.Module:
    """Build a norm of [N, channels, H, W]; with ``num_classes`` its gain and bias are those of each image's class."""
    if kind == "none":
        return nn.Identity()
    affine = not num_classes
    norm: nn.Module
    if kind == "batch":
        norm = nn.BatchNorm2d(channels, affine=affine)
    else:
        # Four channels a group at least: a group of one would wipe out each channel's mean.
        groups = next(count for count in (8, 4, 2, 1) if channels % (4 * count) == 0 or count == 1)
        norm = nn.GroupNorm(groups, channels, affine=affine)
    return ConditionalNorm(norm, num_classes, channels) if num_classes else norm
