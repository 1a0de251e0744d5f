"""What families of convolutions over square images have in common: sizes, channels and norms."""

from pydantic import Field, PositiveInt
from torch import nn

from shoal.errors import ConfigError
from shoal.nets.family import ImageShape, NetConfig
from shoal.nets.norms import Norm, build_norm

SIZES = (28, 32, 64, 128)
CHANNELS = (1, 3)
WIDEST = 8
"""No layer has more than this many times ``width`` channels."""
MAP_HALVINGS = 2
"""Between an image and its map of codes: 28 -> 7, 32 -> 8, 64 -> 16 and 128 -> 32 pixels, as in van den Oord et al.
2017 (arXiv:1711.00937, section 4.2)."""
MAP_BLOCKS = 2
"""Residual blocks at the size of the map of codes, as there."""


class SquareConfig(NetConfig):
    """Square images of 28, 32, 64 or 128 pixels, grey or colour, halved down to 7x7 or 4x4."""

    width: PositiveInt = Field(32, description="channels of the layer next to the image")
    norm: Norm = Field("group", description="'group' is the same at any world size")
    encoder_norm: Norm | None = Field(None, description="of what reads images, if not the same; many GANs: none there")

    def halvings(self, shape: ImageShape) -> int:
        """Return how many times an image is halved on its way to 7x7 or 4x4.

        Raises:
            ConfigError: this family cannot make such images; names the sizes that it can.
        """
        channels, height, width = shape
        if height != width or height not in SIZES or channels not in CHANNELS:
            raise ConfigError(
                f"nets.name={self.name} cannot make images of {channels}x{height}x{width}; it makes squares of"
                f" {', '.join(map(str, SIZES))} pixels with {' or '.join(map(str, CHANNELS))} channels."
                " Import with --size 28 (or another of these), or use nets.name=mlp"
            )
        innermost = 7 if height % 7 == 0 else 4
        return (height // innermost).bit_length() - 1

    def widths(self, num: int) -> list[int]:
        """Return the channels of ``num`` stages from the image inwards: doubling, up to a limit."""
        return [self.width * min(2**stage, WIDEST) for stage in range(num)]

    def encoder_norm_layer(self, channels: int) -> nn.Module:
        """Build the norm of what reads images."""
        return build_norm(self.encoder_norm or self.norm, channels)

    def decoder_norm_layer(self, channels: int, num_classes: int = 0) -> nn.Module:
        """Build the norm of what writes images; with ``num_classes`` a conditional one."""
        return build_norm(self.norm, channels, num_classes)
