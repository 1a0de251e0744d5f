"""Fully connected networks, as in the article that Shoal grew from: 784-64-32 and 100-512-784."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Literal

from pydantic import Field, PositiveInt
from torch import nn

from shoal.nets.family import ImageShape, NetConfig


class MlpConfig(NetConfig):
    """Any image shape; ``hidden`` lists the encoder's widths, which the decoder mirrors."""

    name: Literal["mlp"] = "mlp"
    hidden: tuple[PositiveInt, ...] = Field((512, 256), description="widths from the image to the latent")

    def encoder(self, shape: ImageShape, features: int) -> nn.Module:
        """Build [N, C, H, W] -> [N, features]."""
        return nn.Sequential(nn.Flatten(), *self._layers([prod(shape), *self.hidden, features]))

    def decoder(self, shape: ImageShape, latent: int) -> nn.Module:
        """Build [N, latent] -> [N, C, H, W]."""
        widths = [latent, *reversed(self.hidden), prod(shape)]
        return nn.Sequential(*self._layers(widths), nn.Unflatten(1, shape))

    def _layers(self, widths: Sequence[int]) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), self.activate()]
        return layers[:-1]
