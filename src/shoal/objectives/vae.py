"""The variational autoencoder (Kingma & Welling 2014, arXiv:1312.6114); with beta: Higgins et al. 2017, ICLR."""

import math
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import BeforeValidator, Field, PositiveFloat, model_validator
from torch import Tensor

from shoal.errors import ConfigError
from shoal.nets import NetConfig
from shoal.nets.family import ImageShape
from shoal.noise import Noise
from shoal.objectives.base import Batch, Objective, ObjectiveConfig, Phase, Scalars
from shoal.objectives.likelihood import GaussianDecoder, bernoulli_log_prob, gaussian_log_prob
from shoal.pixels import PixelRange, squash, to_unit

LARGEST_LOG_VARIANCE = 20.0
"""Its exponential is finite in float32, whatever the encoder says."""


def _number_or_learned(value: object) -> object:
    if value == "learned":
        return value
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{value!r} is no standard deviation; use a number above 0, or 'learned'")
    return number


class VaeConfig(ObjectiveConfig):
    """Settings of the VAE."""

    name: Literal["vae"] = "vae"
    likelihood: Literal["gaussian", "bernoulli"] = Field("gaussian", description="of a pixel, given the code")
    sigma: Annotated[float | Literal["learned"], BeforeValidator(_number_or_learned)] = Field(
        "learned", description="standard deviation of the gaussian likelihood, of pixels in [0, 1]"
    )
    beta: PositiveFloat = Field(1.0, description="weight of the KL divergence; 1: the evidence lower bound")

    @model_validator(mode="after")
    def _sigma_is_gaussian(self) -> Self:
        if self.likelihood == "bernoulli" and self.sigma != "learned":
            raise ValueError(f"sigma={self.sigma:g} has no meaning with likelihood=bernoulli; leave it out")
        return self


class Vae(Objective):
    """Maximise a lower bound on the log-likelihood of the images, with the KL divergence weighed by ``beta``.

    The loss is the negative bound divided by the number of pixel values, so that learning rates and clipping norms
    are of the order of the other autoencoders'. What is reported is in nats per image.
    """

    Config = VaeConfig
    phases = (Phase(name="elbo", trains=("encoder", "decoder")),)
    inference = ("encoder", "decoder")
    latent_nets: ClassVar = {"encoder": 2, "decoder": 1}
    latent_kind = "posterior"

    def __init__(
        self, config: VaeConfig, nets: NetConfig, shape: ImageShape, pixel_range: PixelRange, num_classes: int = 0
    ) -> None:
        """Build the two networks for images of ``shape``.

        Raises:
            ConfigError: a Bernoulli likelihood of pixels that are not in [0, 1].
        """
        self._gaussian = config.likelihood == "gaussian"
        if not self._gaussian and pixel_range != "unit":
            raise ConfigError(
                f"objective.likelihood=bernoulli is of pixels in [0, 1], not of data.range={pixel_range}; use"
                " data.range=unit, or objective.likelihood=gaussian"
            )
        decoder = nets.decoder(shape, nets.latent)
        sigma = None if config.sigma == "learned" else config.sigma
        self.nets = {
            "encoder": nets.encoder(shape, 2 * nets.latent),
            "decoder": GaussianDecoder(decoder, sigma) if self._gaussian else decoder,
        }
        self._latent = nets.latent
        self._beta = config.beta
        self._range = pixel_range

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Scalars]:
        """Return the mean over images of (beta KL - log p(x | z)) / pixels at one z ~ q(z | x)."""
        x = to_unit(batch.images, self._range)
        mean, log_variance = self.posterior(batch.images)
        z = mean + torch.exp(0.5 * log_variance) * noise.normal("latent/posterior", self._latent)
        log_likelihood, y, log_sigma = self._likelihood(x, z)
        kl = kl_to_standard_normal(mean, log_variance)
        told = {
            "loss/elbo": log_likelihood - kl,
            "loss/kl": kl,
            "loss/reconstruction": (x - y).square().flatten(1).mean(1),
        }
        if log_sigma is not None:
            told["likelihood/sigma"] = torch.exp(log_sigma)
        return (self._beta * kl - log_likelihood).mean() / x[0].numel(), told

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of q(z | x), both [n, latent], of images [n, C, H, W] in the preset's range."""
        mean, raw = self.nets["encoder"](x).chunk(2, dim=1)
        # Not cut off: a code beyond the bound still has a gradient that leads back.
        return mean, LARGEST_LOG_VARIANCE * torch.tanh(raw / LARGEST_LOG_VARIANCE)

    def log_weights(self, x: Tensor, posterior: tuple[Tensor, Tensor], eps: Tensor) -> Tensor:
        """Return log p(x | z) + log p(z) - log q(z | x) in nats, [n], at z = mean + std * eps, eps [n, latent].

        The logarithm of the mean of their exponentials over eps ~ N(0, I) bounds log p(x) from below, the tighter the
        more there are (Burda et al. 2016, arXiv:1509.00519, eq. 8). Densities are those of pixels in [0, 1].
        """
        mean, log_variance = posterior
        z = mean + torch.exp(0.5 * log_variance) * eps
        log_likelihood, _, _ = self._likelihood(to_unit(x, self._range), z)
        # The 2 pi of prior and posterior cancel.
        return log_likelihood + 0.5 * (eps.square() + log_variance - z.square()).sum(1)

    def encode(self, x: Tensor) -> Tensor:
        """Return codes [n, latent]: the means of q(z | x)."""
        return self.posterior(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Return images [n, C, H, W] in the preset's range: the means of p(x | z)."""
        out = self.nets["decoder"](z)
        return squash(out[0] if self._gaussian else out, self._range)

    def sample(self, num: int, noise: Noise, labels: Tensor | None = None) -> Tensor:
        """Return ``num`` images [num, C, H, W] in the preset's range: the means of p(x | z) at z ~ N(0, I)."""
        return self.decode(noise.normal("latent/sample", self._latent))

    def _likelihood(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return log p(x | z) [n] of pixels in [0, 1], its mean image in [0, 1], and log sigma where there is one."""
        if not self._gaussian:
            logits = self.nets["decoder"](z)
            return bernoulli_log_prob(x, logits), torch.sigmoid(logits), None
        out, log_sigma = self.nets["decoder"](z)
        y = to_unit(squash(out, self._range), self._range)
        return gaussian_log_prob(x, y, log_sigma), y, log_sigma


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, variance) || N(0, I)) in nats, [n], of [n, latent] each (Kingma & Welling, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
