"""Strided convolutions down, transposed convolutions up (DCGAN: Radford et al. 2016, arXiv:1511.06434)."""

from itertools import pairwise
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn

from shoal.errors import ConfigError
from shoal.nets.family import ImageShape, NetConfig, Network

SIZES = (28, 32, 64, 128)
CHANNELS = (1, 3)
WIDEST = 8
"""No layer has more than this many times ``width`` channels."""

Norm = Literal["group", "batch", "none"]


class ConvConfig(NetConfig):
    """Square images of 28, 32, 64 or 128 pixels, grey or colour.

    Each stage halves the image and doubles the channels, down to 7x7 or 4x4; then come the fully connected layers.
    """

    name: Literal["conv"] = "conv"
    width: PositiveInt = Field(32, description="channels of the layer next to the image")
    hidden: NonNegativeInt = Field(0, description="units between the convolutions and the latent; 0: none")
    norm: Norm = Field("group", description="'group' is the same at any world size")
    init_std: PositiveFloat | None = Field(None, description="of normal initial weights, DCGAN: 0.02. None: torch's")

    def encoder(self, shape: ImageShape, features: int) -> Network:
        """Build [N, C, H, W] -> [N, features]; no norm next to the image, as DCGAN advises."""
        widths, size = self._plan(shape)
        layers: list[nn.Module] = []
        for stage, (before, after) in enumerate(pairwise([shape[0], *widths])):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1)]
            layers += [self._norm(after)] if stage else []
            layers += [self.activate()]
        flat = widths[-1] * size * size
        layers += [nn.Flatten()]
        if self.hidden:
            layers += [nn.Linear(flat, self.hidden), self.activate()]
        layers += [nn.Linear(self.hidden or flat, features)]
        last = len(layers) - 1
        return self._initialised(Network(layers, {f"{last}.weight": 0, f"{last}.bias": 0}))

    def decoder(self, shape: ImageShape, latent: int, num_classes: int = 0) -> Network:
        """Build [N, latent] -> [N, C, H, W]."""
        widths, size = self._plan(shape)
        flat = widths[-1] * size * size
        layers: list[nn.Module] = []
        if self.hidden:
            layers += [nn.Linear(latent, self.hidden), self.activate()]
        # Linear + reshape, not a 1x1 -> 4x4 convolution: that one does not compile in channels_last.
        layers += [nn.Linear(self.hidden or latent, flat), nn.Unflatten(1, (widths[-1], size, size))]
        layers += [self._norm(widths[-1]), self.activate()]
        for before, after in pairwise(reversed(widths)):
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), self._norm(after), self.activate()]
        last = nn.ConvTranspose2d(widths[0], shape[0], 4, stride=2, padding=1)
        return self._initialised(Network([*layers, last], {"0.weight": 1}))

    def _plan(self, shape: ImageShape) -> tuple[list[int], int]:
        """Return the channels of each stage from the image inwards, and the innermost height."""
        channels, height, width = shape
        if height != width or height not in SIZES or channels not in CHANNELS:
            raise ConfigError(
                f"nets.name=conv cannot make images of {channels}x{height}x{width}; it makes squares of"
                f" {', '.join(map(str, SIZES))} pixels with {' or '.join(map(str, CHANNELS))} channels."
                " Import with --size 28 (or another of these), or use nets.name=mlp"
            )
        widths: list[int] = []
        while height % 2 == 0 and height > 4:
            widths.append(self.width * min(2 ** len(widths), WIDEST))
            height //= 2
        return widths, height

    def _initialised(self, net: Network) -> Network:
        if self.init_std is not None:
            for layer in net.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                    nn.init.normal_(layer.weight, 0.0, self.init_std)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)
        return net

    def _norm(self, channels: int) -> nn.Module:
        match self.norm:
            case "none":
                return nn.Identity()
            case "batch":
                return nn.BatchNorm2d(channels)
            case "group":
                # Four channels a group at least: a group of one would wipe out each channel's mean.
                groups = next(count for count in (8, 4, 2, 1) if channels % (4 * count) == 0 or count == 1)
                return nn.GroupNorm(groups, channels)
