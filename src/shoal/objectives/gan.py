"""Generative adversarial networks (Goodfellow et al. 2014, arXiv:1406.2661)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from shoal.nets import NetConfig
from shoal.nets.family import ImageShape
from shoal.noise import Noise
from shoal.objectives.base import Batch, Objective, ObjectiveConfig, Phase, Scalars
from shoal.pixels import PixelRange, squash


class GanConfig(ObjectiveConfig):
    """Settings of the GAN."""

    name: Literal["gan"] = "gan"
    loss: Literal["non_saturating", "minimax"] = Field("non_saturating", description="what the generator minimises")


class Gan(Objective):
    """Train a discriminator to tell real from generated images, and a generator to be taken for real.

    With D(x) the probability of being real and logits l = logit D, -log D = softplus(-l) and -log(1 - D) = softplus(l).
    """

    Config = GanConfig
    phases = (
        Phase(name="discriminator", trains=("discriminator",)),
        Phase(name="generator", trains=("generator",)),
    )
    inference = ("generator",)
    latent_nets: ClassVar = {"generator": 1}

    def __init__(
        self, config: GanConfig, nets: NetConfig, shape: ImageShape, pixel_range: PixelRange, num_classes: int = 0
    ) -> None:
        """Build the two networks for images of ``shape``."""
        self.nets = {"generator": nets.decoder(shape, nets.latent), "discriminator": nets.encoder(shape, 1)}
        self._latent = nets.latent
        self._loss = config.loss
        self._range = pixel_range

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Scalars]:
        """Return the phase's loss; each phase draws latents of its own."""
        z = noise.normal(f"latent/{phase}", self._latent)
        return self._discriminator_loss(batch.images, z) if phase == "discriminator" else self._generator_loss(z)

    def sample(self, num: int, noise: Noise, labels: Tensor | None = None) -> Tensor:
        """Return ``num`` images [num, C, H, W] in the preset's range."""
        return self._generate(noise.normal("latent/sample", self._latent))

    def _discriminator_loss(self, x: Tensor, z: Tensor) -> tuple[Tensor, Scalars]:
        with torch.no_grad():
            fake_images = self._generate(z)
        real = self.nets["discriminator"](x).squeeze(1)
        fake = self.nets["discriminator"](fake_images).squeeze(1)
        loss = softplus(-real) + softplus(fake)  # Goodfellow et al. 2014, eq. 1, negated
        return loss.mean(), {
            "loss/discriminator": loss,
            "score/real": torch.sigmoid(real),
            "score/fake": torch.sigmoid(fake),
        }

    def _generator_loss(self, z: Tensor) -> tuple[Tensor, Scalars]:
        fake = self.nets["discriminator"](self._generate(z)).squeeze(1)
        # Minimax descends log(1 - D), whose gradient vanishes where D is sure; the paper's cure is -log D (sec. 3).
        loss = -softplus(fake) if self._loss == "minimax" else softplus(-fake)
        return loss.mean(), {"loss/generator": loss}

    def _generate(self, z: Tensor) -> Tensor:
        return squash(self.nets["generator"](z), self._range)
