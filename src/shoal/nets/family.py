"""What a family of networks offers an objective."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Literal

from pydantic import PositiveInt
from torch import nn

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


class NetConfig(Strict):
    """Settings that every family has, and the two networks that every family can build."""

    name: str
    latent: PositiveInt = 32
    activation: Activation = "relu"

    @abstractmethod
    def encoder(self, shape: ImageShape, features: int) -> nn.Module:
        """Build a network from images [N, C, H, W] to [N, features]; with one feature it is a discriminator.

        Raises:
            ConfigError: this family cannot read such images; names the sizes that it can.
        """

    @abstractmethod
    def decoder(self, shape: ImageShape, latent: int) -> nn.Module:
        """Build a network from latents [N, latent] to images [N, C, H, W] before the output's squashing.

        Raises:
            ConfigError: this family cannot write such images; names the sizes that it can.
        """

    def activate(self) -> nn.Module:
        """Build one activation."""
        return ACTIVATIONS[self.activation]()
