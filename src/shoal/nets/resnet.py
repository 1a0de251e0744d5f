"""Residual networks (He et al. 2016, arXiv:1603.05027; as GANs: Miyato et al. 2018, arXiv:1802.05957, appendix)."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Literal

from pydantic import Field, PositiveInt
from torch import nn

from shoal.nets.conditional import conditioned
from shoal.nets.family import ImageShape, Network
from shoal.nets.residual import Residual
from shoal.nets.squares import MAP_BLOCKS, MAP_HALVINGS, SquareConfig


class ResnetConfig(SquareConfig):
    """Square images of 28, 32, 64 or 128 pixels, grey or colour.

    Residual blocks at the image's size and at each half of it, down to 7x7 or 4x4, with twice the channels at each.
    It trains without norms too (norm: none).
    """

    name: Literal["resnet"] = "resnet"
    blocks: PositiveInt = Field(1, description="residual blocks at each size")

    def encoder(self, shape: ImageShape, features: int) -> Network:
        """Build [N, C, H, W] -> [N, features]."""
        halvings = self.halvings(shape)
        layers = [*self._down(shape[0], halvings, self.blocks), nn.Flatten()]
        flat = self.widths(halvings + 1)[-1] * (shape[1] >> halvings) ** 2
        return self.reading([*layers, nn.Linear(flat, features)])

    def decoder(self, shape: ImageShape, latent: int, num_classes: int = 0) -> Network:
        """Build [N, latent] -> [N, C, H, W]; classes set the norms, or without norms the first layer."""
        halvings = self.halvings(shape)
        width, size = self.widths(halvings + 1)[-1], shape[1] >> halvings
        layers = conditioned(nn.Linear(latent, width * size * size), num_classes if self.norm == "none" else 0)
        layers += [nn.Unflatten(1, (width, size, size)), *self._up(shape[0], halvings, self.blocks, num_classes)]
        return Network(layers, {"0.weight": 1})

    def map_encoder(self, shape: ImageShape, features: int) -> Network:
        """Build [N, C, H, W] -> [N, features, H/4, W/4]."""
        self.halvings(shape)
        layers = self._down(shape[0], MAP_HALVINGS, max(self.blocks, MAP_BLOCKS))
        return self.reading([*layers, nn.Conv2d(self.widths(MAP_HALVINGS + 1)[-1], features, 1)])

    def map_decoder(self, shape: ImageShape, features: int) -> Network:
        """Build [N, features, H/4, W/4] -> [N, C, H, W]."""
        self.halvings(shape)
        first = nn.Conv2d(features, self.widths(MAP_HALVINGS + 1)[-1], 1)
        layers = self._up(shape[0], MAP_HALVINGS, max(self.blocks, MAP_BLOCKS))
        return Network([first, *layers], {"0.weight": 1})

    def _down(self, channels: int, halvings: int, innermost: int) -> list[nn.Module]:
        """Build the way from an image to an activation, with ``innermost`` blocks at its size."""
        widths = self.widths(halvings + 1)
        norm = self.encoder_norm_layer
        block = self._block(norm, halvings * self.blocks + innermost, zero=not self.spectral_norm)
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
        for before, after in pairwise(widths):
            layers += [block(before, before) for _ in range(self.blocks - 1)]
            layers += [block(before, after, size="down")]
        layers += [block(widths[-1], widths[-1]) for _ in range(innermost)]
        return [*layers, norm(widths[-1]), self.activate()]

    def _up(self, channels: int, halvings: int, innermost: int, num_classes: int = 0) -> list[nn.Module]:
        """Build the way back, to an image; it mirrors ``_down``."""
        widths = self.widths(halvings + 1)
        norm = partial(self.decoder_norm_layer, num_classes=num_classes)
        block = self._block(norm, halvings * self.blocks + innermost)
        layers: list[nn.Module] = [block(widths[-1], widths[-1]) for _ in range(innermost)]
        for before, after in pairwise(reversed(widths)):
            layers += [block(before, after, size="up")]
            layers += [block(after, after) for _ in range(self.blocks - 1)]
        last = nn.Conv2d(widths[0], channels, 3, padding=1)
        return [*layers, norm(widths[0]), self.activate(), last]

    def _block(self, norm: Callable[[int], nn.Module], depth: int, *, zero: bool = True) -> Callable[..., Residual]:
        return partial(Residual, norm=norm, activate=self.activate, depth=depth, zero=zero)
