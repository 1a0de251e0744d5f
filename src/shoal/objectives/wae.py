"""The Wasserstein autoencoder with the MMD penalty (Tolstikhin et al. 2018, arXiv:1711.01558)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from shoal.errors import ConfigError
from shoal.nets import NetConfig
from shoal.nets.family import ImageShape
from shoal.noise import Noise
from shoal.objectives.base import Batch, Objective, ObjectiveConfig, Phase, Scalars
from shoal.objectives.mmd import KERNELS, unbiased_mmd
from shoal.pixels import PixelRange, squash, to_unit


class WaeConfig(ObjectiveConfig):
    """Settings of the WAE."""

    name: Literal["wae"] = "wae"
    weight: PositiveFloat = Field(10.0, description="of the discrepancy, against squared errors summed over pixels")
    kernel: Literal["imq", "rbf"] = Field("imq", description="inverse multiquadratic, or gaussian")


class Wae(Objective):
    """Minimise the squared error, and the discrepancy between the codes of a batch and the prior N(0, I).

    Unlike a VAE's, the codes of one image do not spread: only all of them together are held to the prior. The loss is
    the paper's (algorithm 2) divided by the number of pixel values, so that its errors are of the order of the other
    autoencoders'.
    """

    Config = WaeConfig
    phases = (Phase(name="reconstruction", trains=("encoder", "decoder")),)
    inference = ("encoder", "decoder")
    latent_nets: ClassVar = {"encoder": 1, "decoder": 1}
    latent_kind = "prior"

    def __init__(
        self, config: WaeConfig, nets: NetConfig, shape: ImageShape, pixel_range: PixelRange, num_classes: int = 0
    ) -> None:
        """Build the two networks for images of ``shape``."""
        self.nets = {"encoder": nets.encoder(shape, nets.latent), "decoder": nets.decoder(shape, nets.latent)}
        self._latent = nets.latent
        self._weight = config.weight
        self._kernel = KERNELS[config.kernel]
        self._range = pixel_range

    def cautions(self, batch: int) -> list[str]:
        """Return nothing to beware of.

        Raises:
            ConfigError: a batch too small to compare.
        """
        if batch < 2:
            raise ConfigError(f"batch {batch} has no pair of codes to hold against the prior; use batch >= 2")
        return []

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Scalars]:
        """Return (squared error of an image + weight * discrepancy of the global batch) / pixels."""
        x = batch.images
        z = self.encode(x)
        error = (to_unit(self.decode(z), self._range) - to_unit(x, self._range)).square().flatten(1).mean(1)
        codes, prior = gather_with_gradient(batch, z, noise.normal("latent/prior", self._latent))
        # The squared distance to be expected of two draws from the prior (sec. 4).
        mmd = unbiased_mmd(codes, prior, self._kernel, usual=2.0 * self._latent)
        # Every worker knows the whole discrepancy, and the gradient by its own codes: the gradients are to be summed
        # over the workers, where those of images are to be averaged by the workers' shares.
        owned = mmd.detach() + (mmd - mmd.detach()) / batch.share
        return error.mean() + self._weight / x[0].numel() * owned, {"loss/reconstruction": error, "loss/mmd": mmd}

    def encode(self, x: Tensor) -> Tensor:
        """Return codes [n, latent]."""
        code: Tensor = self.nets["encoder"](x)
        return code

    def decode(self, z: Tensor) -> Tensor:
        """Return images [n, C, H, W] in the preset's range."""
        return squash(self.nets["decoder"](z), self._range)

    def sample(self, num: int, noise: Noise, labels: Tensor | None = None) -> Tensor:
        """Return ``num`` images [num, C, H, W] in the preset's range."""
        return self.decode(noise.normal("latent/sample", self._latent))


def gather_with_gradient(batch: Batch, z: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of all workers, [size, d], of two tensors [n, d]; own rows of ``z`` keep their gradient."""
    codes, draws = batch.gather(torch.cat([z, prior], 1)).chunk(2, dim=1)  # one message instead of two
    rows = batch.rows or slice(0, len(z))
    return torch.cat([codes[: rows.start], z, codes[rows.stop :]]), draws
