"""Generative adversarial networks (Goodfellow et al. 2014, arXiv:1406.2661): one game, several losses and penalties."""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from shoal.errors import ConfigError
from shoal.nets import NetConfig
from shoal.nets.family import ImageShape
from shoal.noise import Noise
from shoal.objectives.adversarial import LOSSES, LossName
from shoal.objectives.augment import AugmentationName, augment
from shoal.objectives.base import Batch, Objective, ObjectiveConfig, Phase, Scalars
from shoal.objectives.penalties import due, one_centred_gradient, squared_gradient
from shoal.pixels import PixelRange, squash


class GanConfig(ObjectiveConfig):
    """Settings of the GAN."""

    name: Literal["gan"] = "gan"
    loss: LossName = Field("non_saturating", description="what the two networks minimise")
    r1: NonNegativeFloat = Field(0.0, description="gamma of the gradient penalty on real images. 0: none")
    r2: NonNegativeFloat = Field(0.0, description="gamma of the gradient penalty on generated images. 0: none")
    gradient_penalty: NonNegativeFloat = Field(0.0, description="weight of WGAN-GP's, between them; 10 there. 0: none")
    penalty_every: PositiveInt = Field(
        1, description="batches from one penalty to the next, which weighs as many times more"
    )
    critic_steps: PositiveInt = Field(1, description="batches of the discriminator to one of the generator")
    augment: tuple[AugmentationName, ...] = Field((), description="changes of all images that the discriminator sees")
    conditional: bool = Field(False, description="whether both networks are told the class of an image")

    @field_validator("augment")
    @classmethod
    def _each_once(cls, names: tuple[AugmentationName, ...]) -> tuple[AugmentationName, ...]:
        if len(set(names)) < len(names):
            raise ValueError(f"[{', '.join(names)}] names one twice; name each at most once")
        return names


class Gan(Objective):
    """Train a discriminator to tell real from generated images, and a generator to be taken for real.

    What is reported: ``loss/*`` without penalties, ``penalty/*`` without their weights, and what the discriminator says
    of real and generated images: ``score/*``, the probability of being real, where the loss gives it one, else
    ``critic/*``, its raw output.
    """

    Config = GanConfig
    phases = (
        Phase(name="discriminator", trains=("discriminator",)),
        Phase(name="generator", trains=("generator",)),
    )
    inference = ("generator",)
    latent_nets: ClassVar = {"generator": 1}
    latent_kind = "prior"

    def __init__(
        self, config: GanConfig, nets: NetConfig, shape: ImageShape, pixel_range: PixelRange, num_classes: int = 0
    ) -> None:
        """Build the two networks for images of ``shape``."""
        if config.conditional and not num_classes:
            raise ConfigError(
                "objective.conditional=true needs the class of every image, and this data set has no labels; import it"
                " with labels, or set objective.conditional=false"
            )
        self.needs_labels = config.conditional
        self._num_classes = num_classes if config.conditional else 0
        self.nets = {
            "generator": nets.decoder(shape, nets.latent, self._num_classes),
            "discriminator": nets.discriminator(shape, self._num_classes),
        }
        discriminator, generator = type(self).phases
        self.phases = (discriminator, replace(generator, every=config.critic_steps))
        self._latent = nets.latent
        self._config = config
        self._loss = LOSSES[config.loss]
        self._range = pixel_range

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Scalars]:
        """Return the phase's loss; each phase draws latents of its own."""
        z = noise.normal(f"latent/{phase}", self._latent)
        if phase == "discriminator":
            return self._discriminator_loss(batch, z, noise)
        return self._generator_loss(batch, z, noise)

    def sample(self, num: int, noise: Noise, labels: Tensor | None = None) -> Tensor:
        """Return ``num`` images [num, C, H, W] in the preset's range; without ``labels``, of each class in turn."""
        z = noise.normal("latent/sample", self._latent)
        if self._num_classes and labels is None:
            labels = torch.arange(num, device=z.device) % self._num_classes
        return self._generate(z, labels)

    def cautions(self, batch: int) -> list[str]:
        """Return the combinations that are known to fail."""
        config, layers = self._config, list(self.nets["discriminator"].modules())
        penalised = [key for key in ("r1", "r2", "gradient_penalty") if getattr(config, key)]
        found: list[str] = []
        if penalised and any(isinstance(layer, nn.BatchNorm2d) for layer in layers):
            found.append(
                f"objective.{penalised[0]} asks for the gradient of each image's score by that image alone, and"
                " nets.norm=batch mixes the images of a batch; use nets.norm=group or none"
            )
        if config.loss == "wasserstein" and not penalised and not any(map(is_parametrized, layers)):
            found.append(
                "objective.loss=wasserstein grows without bound where nothing holds the critic's slope; set"
                " objective.gradient_penalty=10, or nets.spectral_norm=true"
            )
        return found

    def _discriminator_loss(self, batch: Batch, z: Tensor, noise: Noise) -> tuple[Tensor, Scalars]:
        config, labels = self._config, batch.labels
        penalised = due(batch.index, config.penalty_every)
        with torch.no_grad():
            x = self._shown(batch.images, noise, "discriminator/real")
            y = self._shown(self._generate(z, labels), noise, "discriminator/fake")
        x = x.detach().requires_grad_(penalised and config.r1 > 0)
        y = y.detach().requires_grad_(penalised and config.r2 > 0)
        real, fake = self._score(x, labels), self._score(y, labels)
        loss = self._loss.discriminator(real, fake)
        total, told = loss.mean(), {"loss/discriminator": loss, **self._told(real, fake)}
        if penalised:
            penalties: dict[str, tuple[float, Tensor]] = {}
            if config.r1:
                penalties["penalty/r1"] = config.r1 / 2, squared_gradient(real, x)
            if config.r2:
                penalties["penalty/r2"] = config.r2 / 2, squared_gradient(fake, y)
            if config.gradient_penalty:
                position = noise.uniform("penalty/position", 1)
                slope = one_centred_gradient(lambda images: self._score(images, labels), x, y, position)
                penalties["penalty/gradient"] = config.gradient_penalty, slope
            for name, (weight, values) in penalties.items():
                total = total + weight * config.penalty_every * values.mean()
                told[name] = values
        return total, told

    def _generator_loss(self, batch: Batch, z: Tensor, noise: Noise) -> tuple[Tensor, Scalars]:
        labels = batch.labels
        fake = self._score(self._shown(self._generate(z, labels), noise, "generator/fake"), labels)
        real = torch.zeros_like(fake)  # unread, and not worth a pass, unless the loss is paired
        if self._loss.paired:
            with torch.no_grad():
                real = self._score(self._shown(batch.images, noise, "generator/real"), labels)
        loss = self._loss.generator(real, fake)
        return loss.mean(), {"loss/generator": loss}

    def _generate(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return squash(self.nets["generator"](z, labels), self._range)

    def _shown(self, images: Tensor, noise: Noise, purpose: str) -> Tensor:
        """Return the images as the discriminator sees them."""
        return augment(images, self._config.augment, noise, f"augment/{purpose}", self._range)

    def _score(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Return raw scores [n]."""
        scores: Tensor = self.nets["discriminator"](images, labels)
        return scores.squeeze(1)

    def _told(self, real: Tensor, fake: Tensor) -> Mapping[str, Tensor]:
        if self._loss.probability:
            return {"score/real": torch.sigmoid(real), "score/fake": torch.sigmoid(fake)}
        return {"critic/real": real, "critic/fake": fake}
