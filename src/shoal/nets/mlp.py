"""Fully connected networks, as in the article that Shoal grew from: 784-64-32 and 100-512-784."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Literal

from pydantic import Field, PositiveInt
from torch import nn

from shoal.nets.family import ImageShape, NetConfig, Network


class MlpConfig(NetConfig):
    """Any image shape; ``hidden`` lists the encoder's widths, which the decoder mirrors."""

    name: Literal["mlp"] = "mlp"
    hidden: tuple[PositiveInt, ...] = Field((512, 256), description="widths from the image to the latent")

    def encoder(self, shape: ImageShape, features: int) -> Network:
        """Build [N, C, H, W] -> [N, features]."""
        layers = [nn.Flatten(), *self._layers([prod(shape), *self.hidden, features])]
        last = len(layers) - 1
        return Network(layers, {f"{last}.weight": 0, f"{last}.bias": 0})

    def decoder(self, shape: ImageShape, latent: int, num_classes: int = 0) -> Network:
        """Build [N, latent] -> [N, C, H, W]."""
        widths = [latent, *reversed(self.hidden), prod(shape)]
        return Network([*self._layers(widths), nn.Unflatten(1, shape)], {"0.weight": 1})

    def _layers(self, widths: Sequence[int]) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), self.activate()]
        return layers[:-1]
