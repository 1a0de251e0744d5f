"""What a family of networks offers an objective."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn

from shoal.errors import ConfigError
from shoal.strict import Strict

ImageShape = tuple[int, int, int]
"""Channels, height, width."""

Activation = Literal["relu", "leaky_relu", "gelu", "silu"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


class TakesLabels(nn.Module):
    """A layer whose ``forward(x, labels)`` depends on the class, e.g. a conditional norm."""


class Network(nn.Sequential):
    """Layers one after another; those that take labels are given them.

    Attributes:
        latent_axes: for each tensor of ``state_dict`` that a larger latent makes larger, the axis along which it does.
            It is what lets a search change the latent size of a trained network.
    """

    def __init__(self, layers: Iterable[nn.Module], latent_axes: Mapping[str, int]) -> None:
        super().__init__(*layers)
        self.latent_axes = dict(latent_axes)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Apply the layers to ``x`` [N, …]; ``labels`` is int64 [N] for a network built for classes."""
        for layer in self:
            x = layer(x, labels) if isinstance(layer, TakesLabels) else layer(x)
        return x


class NetConfig(Strict):
    """Settings that every family has, and the networks that it can build.

    Every network is a ``Network`` that declares which axis of which tensor is the latent.
    """

    name: str
    latent: PositiveInt = 32
    activation: Activation = "relu"

    @abstractmethod
    def encoder(self, shape: ImageShape, features: int) -> Network:
        """Build a network from images [N, C, H, W] to [N, features]; with one feature it is a discriminator.

        Raises:
            ConfigError: this family cannot read such images; names the sizes that it can.
        """

    @abstractmethod
    def decoder(self, shape: ImageShape, latent: int, num_classes: int = 0) -> Network:
        """Build a network from latents [N, latent] to images [N, C, H, W] before the output's squashing.

        With ``num_classes`` its forward takes labels, int64 [N], too.

        Raises:
            ConfigError: this family cannot write such images; names the sizes that it can.
        """

    def map_encoder(self, shape: ImageShape, features: int) -> Network:
        """Build a network from images [N, C, H, W] to a map of codes [N, features, h, w], smaller than the image.

        Raises:
            ConfigError: this family has no maps, or cannot read such images.
        """
        raise ConfigError(f"nets.name={self.name} has no map of codes; use nets.name=conv or nets.name=resnet")

    def map_decoder(self, shape: ImageShape, features: int) -> Network:
        """Build the way back, from [N, features, h, w] to images [N, C, H, W] before the output's squashing.

        Raises:
            ConfigError: this family has no maps, or cannot write such images.
        """
        raise ConfigError(f"nets.name={self.name} has no map of codes; use nets.name=conv or nets.name=resnet")

    def activate(self) -> nn.Module:
        """Build one activation."""
        return ACTIVATIONS[self.activation]()
