"""Strided convolutions down, transposed convolutions up (DCGAN: Radford et al. 2016, arXiv:1511.06434)."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat
from torch import nn

from shoal.nets.conditional import ClassBias, conditioned
from shoal.nets.family import ImageShape, Network
from shoal.nets.resample import UpConv
from shoal.nets.residual import Residual
from shoal.nets.squares import MAP_BLOCKS, MAP_HALVINGS, SquareConfig


class ConvConfig(SquareConfig):
    """Square images of 28, 32, 64 or 128 pixels, grey or colour.

    Each stage halves the image and doubles the channels, down to 7x7 or 4x4; then come the fully connected layers.
    """

    name: Literal["conv"] = "conv"
    hidden: NonNegativeInt = Field(0, description="units between the convolutions and the latent; 0: none")
    init_std: PositiveFloat | None = Field(None, description="of normal initial weights, DCGAN: 0.02. None: torch's")
    upsampling: Literal["transposed", "nearest"] = Field(
        "transposed", description="'nearest' repeats pixels before a 3x3 convolution: no checkerboards"
    )

    def encoder(self, shape: ImageShape, features: int) -> Network:
        """Build [N, C, H, W] -> [N, features]; no norm next to the image, as DCGAN advises."""
        halvings = self.halvings(shape)
        widths = self.widths(halvings)
        flat = widths[-1] * (shape[1] >> halvings) ** 2
        layers = [*self._down(shape[0], widths), nn.Flatten()]
        if self.hidden:
            layers += [nn.Linear(flat, self.hidden), self.activate()]
        layers += [nn.Linear(self.hidden or flat, features)]
        return self.reading(self._initialised(layers))

    def decoder(self, shape: ImageShape, latent: int, num_classes: int = 0) -> Network:
        """Build [N, latent] -> [N, C, H, W]; classes set the norms, or without norms the first layer."""
        halvings = self.halvings(shape)
        widths = self.widths(halvings)
        size = shape[1] >> halvings
        flat = widths[-1] * size * size
        layers = conditioned(nn.Linear(latent, self.hidden or flat), num_classes if self.norm == "none" else 0)
        if self.hidden:
            layers += [self.activate(), nn.Linear(self.hidden, flat)]
        # Linear + reshape, not a 1x1 -> 4x4 convolution: that one does not compile in channels_last.
        layers += [nn.Unflatten(1, (widths[-1], size, size)), *self._up(shape[0], widths, num_classes)]
        return Network(self._initialised(layers), {"0.weight": 1})

    def map_encoder(self, shape: ImageShape, features: int) -> Network:
        """Build [N, C, H, W] -> [N, features, H/4, W/4], as van den Oord et al. 2017 (arXiv:1711.00937)."""
        self.halvings(shape)
        widths = self.widths(MAP_HALVINGS)
        blocks = self._map_blocks(widths[-1], self.encoder_norm_layer, zero=not self.spectral_norm)
        layers = [*self._down(shape[0], widths), *blocks, self.encoder_norm_layer(widths[-1]), self.activate()]
        layers += [nn.Conv2d(widths[-1], features, 1)]
        return self.reading(self._initialised(layers))

    def map_decoder(self, shape: ImageShape, features: int) -> Network:
        """Build [N, features, H/4, W/4] -> [N, C, H, W]."""
        self.halvings(shape)
        widths = self.widths(MAP_HALVINGS)
        blocks = self._map_blocks(widths[-1], self.decoder_norm_layer)
        layers = [nn.Conv2d(features, widths[-1], 1), *blocks, *self._up(shape[0], widths)]
        return Network(self._initialised(layers), {"0.weight": 1})

    def _down(self, channels: int, widths: list[int]) -> list[nn.Module]:
        """Build the halvings, from an image to an activation of the last of ``widths``."""
        layers: list[nn.Module] = []
        for stage, (before, after) in enumerate(pairwise([channels, *widths])):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1)]
            layers += [self.encoder_norm_layer(after)] if stage else []
            layers += [self.activate()]
        return layers

    def _up(self, channels: int, widths: list[int], num_classes: int = 0) -> list[nn.Module]:
        """Build the doublings, from what is not yet normed or activated to an image."""
        layers = [self.decoder_norm_layer(widths[-1], num_classes), self.activate()]
        for before, after in pairwise(reversed(widths)):
            layers += [self._double(before, after), self.decoder_norm_layer(after, num_classes), self.activate()]
        return [*layers, self._double(widths[0], channels)]

    def _double(self, before: int, after: int) -> nn.Module:
        if self.upsampling == "nearest":
            return UpConv(before, after)
        return nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)

    def _map_blocks(self, width: int, norm: Callable[[int], nn.Module], *, zero: bool = True) -> list[nn.Module]:
        block = partial(Residual, norm=norm, activate=self.activate, depth=MAP_BLOCKS, zero=zero)
        return [block(width, width) for _ in range(MAP_BLOCKS)]

    def _initialised(self, layers: list[nn.Module]) -> list[nn.Module]:
        if self.init_std is not None:
            for layer in nn.ModuleList(layers).modules():
                if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                    nn.init.normal_(layer.weight, 0.0, self.init_std)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)
                elif isinstance(layer, ClassBias):
                    nn.init.normal_(layer.bias, 0.0, self.init_std)
        return layers
