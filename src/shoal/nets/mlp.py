"""Fully connected networks, as in the article that Shoal grew from: 784-64-32 and 100-512-784."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator
from torch import nn

from shoal.nets.conditional import conditioned
from shoal.nets.family import ImageShape, NetConfig, Network


class MlpConfig(NetConfig):
    """Any image shape; ``hidden`` lists the encoder's widths, which the decoder mirrors."""

    name: Literal["mlp"] = "mlp"
    hidden: tuple[PositiveInt, ...] = Field((512, 256), description="widths from the image to the latent")
    width: PositiveInt | None = Field(
        None, description="units of the widest hidden layer; the others scale with it. None: as 'hidden' says"
    )

    @model_validator(mode="after")
    def _width_needs_layers(self) -> Self:
        if self.width is not None and not self.hidden:
            raise ValueError(
                f"width={self.width} scales the hidden layers and hidden=[] has none; set hidden, e.g. [2, 1]"
            )
        return self

    def encoder(self, shape: ImageShape, features: int) -> Network:
        """Build [N, C, H, W] -> [N, features]."""
        return self.reading([nn.Flatten(), *self._layers([prod(shape), *self.widths(), features])])

    def decoder(self, shape: ImageShape, latent: int, num_classes: int = 0) -> Network:
        """Build [N, latent] -> [N, C, H, W]; classes set the first layer's bias."""
        layers = self._layers([latent, *reversed(self.widths()), prod(shape)], num_classes)
        return Network([*layers, nn.Unflatten(1, shape)], {"0.weight": 1})

    def widths(self) -> list[int]:
        """Return the units of the hidden layers, from the image to the latent."""
        if self.width is None:
            return list(self.hidden)
        return [max(1, round(units * self.width / max(self.hidden))) for units in self.hidden]

    def _layers(self, widths: Sequence[int], num_classes: int = 0) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            classes = 0 if layers else num_classes
            layers += [*conditioned(nn.Linear(before, after), classes), self.activate()]
        return layers[:-1]
