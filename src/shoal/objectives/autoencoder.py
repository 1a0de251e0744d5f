"""The plain autoencoder (Hinton & Salakhutdinov 2006): squeeze an image through a small code and get it back."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from shoal.nets import NetConfig
from shoal.nets.family import ImageShape
from shoal.noise import Noise
from shoal.objectives.base import Batch, Objective, ObjectiveConfig, Phase, Scalars
from shoal.pixels import PixelRange, squash, to_unit


class AutoencoderConfig(ObjectiveConfig):
    """Settings of the plain autoencoder."""

    name: Literal["autoencoder"] = "autoencoder"
    code: Literal["linear", "sigmoid"] = Field("linear", description="what squashes the code")


class Autoencoder(Objective):
    """Minimise the squared error between an image and its reconstruction."""

    Config: ClassVar[type[ObjectiveConfig]] = AutoencoderConfig
    phases = (Phase(name="reconstruction", trains=("encoder", "decoder")),)
    inference = ("encoder", "decoder")
    latent_nets: ClassVar = {"encoder": 1, "decoder": 1}

    def __init__(
        self,
        config: AutoencoderConfig,
        nets: NetConfig,
        shape: ImageShape,
        pixel_range: PixelRange,
        num_classes: int = 0,
    ) -> None:
        """Build the two networks for images of ``shape``."""
        self.nets = {"encoder": nets.encoder(shape, nets.latent), "decoder": nets.decoder(shape, nets.latent)}
        self.latent_kind = "linear" if config.code == "linear" else "code"
        self._code = config.code
        self._range = pixel_range

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Scalars]:
        """Return the mean squared error over pixels in [0, 1] and images."""
        x = batch.images
        error = (
            (to_unit(self.decode(self.encode(x)), self._range) - to_unit(x, self._range)).square().flatten(1).mean(1)
        )
        return error.mean(), {"loss/reconstruction": error}

    def encode(self, x: Tensor) -> Tensor:
        """Return codes [n, latent]; in (0, 1) if ``code`` is sigmoid."""
        code: Tensor = self.nets["encoder"](x)
        return torch.sigmoid(code) if self._code == "sigmoid" else code

    def decode(self, z: Tensor) -> Tensor:
        """Return images [n, C, H, W] in the preset's range."""
        return squash(self.nets["decoder"](z), self._range)
