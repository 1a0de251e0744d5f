"""The denoising autoencoder (Vincent et al. 2008, ICML, doi:10.1145/1390156.1390294): mend a damaged image."""

from typing import Literal, Self

from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from shoal.nets import NetConfig
from shoal.nets.family import ImageShape
from shoal.noise import Noise
from shoal.objectives.autoencoder import Autoencoder, AutoencoderConfig
from shoal.objectives.base import Batch, ObjectiveConfig, Scalars
from shoal.pixels import PixelRange, to_unit


class DenoisingAutoencoderConfig(ObjectiveConfig):
    """Settings of the denoising autoencoder."""

    name: Literal["denoising_autoencoder"] = "denoising_autoencoder"
    code: Literal["linear", "sigmoid"] = Field("linear", description="what squashes the code")
    corruption: Literal["gaussian", "mask"] = Field("gaussian", description="what damages the images")
    amount: PositiveFloat = Field(
        0.3, description="gaussian: standard deviation, of pixels in [0, 1]; mask: share of the pixels made black"
    )

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.corruption == "mask" and self.amount >= 1:
            raise ValueError(
                f"amount={self.amount:g} with corruption=mask leaves nothing of an image; it is the share of the pixels"
                " made black, so use one below 1"
            )
        return self


class DenoisingAutoencoder(Autoencoder):
    """Minimise the squared error between a clean image and what comes back of a damaged one.

    Only training damages images: ``encode`` takes them as they are.
    """

    Config = DenoisingAutoencoderConfig

    def __init__(
        self,
        config: DenoisingAutoencoderConfig,
        nets: NetConfig,
        shape: ImageShape,
        pixel_range: PixelRange,
        num_classes: int = 0,
    ) -> None:
        """Build the two networks for images of ``shape``."""
        super().__init__(AutoencoderConfig(code=config.code), nets, shape, pixel_range, num_classes)
        self._corruption = config.corruption
        self._amount = config.amount

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Scalars]:
        """Return the mean squared error over pixels in [0, 1] and images."""
        y = self.decode(self.encode(self.corrupt(batch.images, noise)))
        error = (to_unit(y, self._range) - to_unit(batch.images, self._range)).square().flatten(1).mean(1)
        return error.mean(), {"loss/reconstruction": error}

    def corrupt(self, x: Tensor, noise: Noise) -> Tensor:
        """Return images [n, C, H, W] damaged by the noise of their batch.

        ``gaussian`` adds normal noise and does not clip; ``mask`` makes each pixel black, in all its channels, with the
        same chance.
        """
        symmetric = self._range == "symmetric"
        if self._corruption == "gaussian":
            std = self._amount * (2 if symmetric else 1)
            return x + std * noise.normal("corruption", x[0].numel()).reshape(x.shape)
        masked = noise.uniform("corruption", x[0, 0].numel()).reshape(len(x), 1, *x.shape[2:]) < self._amount
        return x.masked_fill(masked, -1.0 if symmetric else 0.0)
