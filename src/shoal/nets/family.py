"""What a family of networks offers an objective."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import Field, PositiveInt
from torch import nn

from shoal.errors import ConfigError
from shoal.nets.network import Network, TakesLabels
from shoal.nets.projection import project_onto_classes
from shoal.nets.spectral import normalised
from shoal.strict import Strict

__all__ = ["ACTIVATIONS", "Activation", "ImageShape", "NetConfig", "Network", "TakesLabels"]

ImageShape = tuple[int, int, int]
"""Channels, height, width."""

Activation = Literal["relu", "leaky_relu", "gelu", "silu"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


class NetConfig(Strict):
    """Settings that every family has, and the networks that it can build.

    Every network is a ``Network`` that declares which axis of which tensor is the latent. What a family builds to read
    images goes through ``reading``.
    """

    name: str
    latent: PositiveInt = 32
    activation: Activation = "relu"
    spectral_norm: bool = Field(False, description="on the weights of what reads images, not of what writes them")

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

    def discriminator(self, shape: ImageShape, num_classes: int = 0) -> Network:
        """Build a network from images [N, C, H, W] to scores [N, 1]: ``encoder(shape, 1)``.

        With ``num_classes`` it is a projection discriminator (Miyato & Koyama 2018, arXiv:1802.05637), whose forward
        takes labels, int64 [N], too.

        Raises:
            ConfigError: this family cannot read such images; names the sizes that it can.
        """
        net = self.encoder(shape, 1)
        return project_onto_classes(net, num_classes, spectral_norm=self.spectral_norm) if num_classes else net

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

    def reading(self, layers: Sequence[nn.Module]) -> Network:
        """Join layers, initialised, that read images; the last gives the features. Adds the spectral norm asked for."""
        last = len(layers) - 1
        net = Network(layers, {f"{last}.weight": 0, f"{last}.bias": 0})
        return normalised(net) if self.spectral_norm else net
