"""The VQ-VAE: an image as a map of entries of a learned codebook (van den Oord et al. 2017, arXiv:1711.00937)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from shoal.nets import NetConfig
from shoal.nets.family import ImageShape
from shoal.noise import Noise
from shoal.objectives.base import Batch, Objective, ObjectiveConfig, Phase, Scalars
from shoal.objectives.codebook import Codebook
from shoal.pixels import PixelRange, squash, to_unit


class VqVaeConfig(ObjectiveConfig):
    """Settings of the VQ-VAE. ``nets.latent`` is the size of a codebook vector."""

    name: Literal["vq_vae"] = "vq_vae"
    num_codes: int = Field(512, ge=2, description="vectors in the codebook")
    commitment: float = Field(0.25, ge=0, description="weight of the distance between the encoder's vectors and codes")
    decay: float = Field(0.99, ge=0, lt=1, description="by the batch, of the averages that the codes follow")
    restart: bool = Field(True, description="move dead codes to where the encoder's vectors are")
    dead_below: float = Field(0.03, gt=0, lt=1, description="use of a dead code, as a share of 1 / num_codes")


class VqVae(Objective):
    """Minimise the squared error of images that are rebuilt from the codes nearest to the encoder's vectors.

    The gradient passes by the choice of the codes as if there were none (straight-through), a commitment term keeps the
    encoder near them, and the codes follow the encoder by moving averages (eq. 3, with appendix A.1 for its second
    term). To generate images takes a prior over codes, which is a model of its own.
    """

    Config = VqVaeConfig
    phases = (Phase(name="reconstruction", trains=("encoder", "decoder")),)
    inference = ("encoder", "codebook", "decoder")
    latent_nets: ClassVar = {"encoder": 1, "codebook": 1, "decoder": 1}
    latent_kind = "codebook"

    def __init__(
        self, config: VqVaeConfig, nets: NetConfig, shape: ImageShape, pixel_range: PixelRange, num_classes: int = 0
    ) -> None:
        """Build the two networks for images of ``shape``, and the codebook between them.

        Raises:
            ConfigError: networks without a map of codes, or that cannot make such images.
        """
        self.nets = {
            "encoder": nets.map_encoder(shape, nets.latent),
            "codebook": Codebook(
                config.num_codes,
                nets.latent,
                decay=config.decay,
                dead_below=config.dead_below,
                revive=config.restart,
            ),
            "decoder": nets.map_decoder(shape, nets.latent),
        }
        with torch.device("meta"):  # shapes only
            self._map = tuple(nets.map_encoder(shape, nets.latent)(torch.empty(1, *shape)).shape[1:])
        self.num_codes = config.num_codes
        self._commitment = config.commitment
        self._range = pixel_range

    def cautions(self, batch: int) -> list[str]:
        """Return whether a batch has too few vectors to choose every code."""
        _, height, width = self._map
        most = batch * height * width
        if self.num_codes <= most:
            return []
        enough = -(-self.num_codes // (height * width))
        return [
            f"objective.num_codes={self.num_codes} is more than the {batch} x {height} x {width} = {most} codes that a"
            f" batch can use, so {self.num_codes - most} or more lie idle in each; use batch >= {enough}, or"
            f" objective.num_codes <= {most}, and watch codes/usage"
        ]

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Scalars]:
        """Return squared error + commitment * squared distance to the codes, means over values and images.

        In training the codebook takes its step as well.
        """
        x, codebook = batch.images, self._codebook
        map_ = self.nets["encoder"](x)
        vectors = _vectors(map_).detach()
        if codebook.training:
            codebook.restart(vectors, batch, noise)
        indices = codebook.nearest(vectors)
        codes = self._to_map(codebook(indices))
        if codebook.training:
            codebook.follow(vectors, indices, batch)
        y = squash(self.nets["decoder"](map_ + (codes - map_).detach()), self._range)
        error = (to_unit(y, self._range) - to_unit(x, self._range)).square().flatten(1).mean(1)
        distance = (map_ - codes).square().flatten(1).mean(1)
        return (error + self._commitment * distance).mean(), {
            "loss/reconstruction": error,
            "loss/commitment": distance,
            "codes/usage": codebook.usage(),
            "codes/perplexity": codebook.perplexity(),
        }

    def code_indices(self, x: Tensor) -> Tensor:
        """Return codebook entries, int64 [n, h * w], of images [n, C, H, W] in the preset's range."""
        return self._codebook.nearest(_vectors(self.nets["encoder"](x))).view(len(x), -1)

    def encode(self, x: Tensor) -> Tensor:
        """Return codes [n, D * h * w]: the map of codebook vectors that an image becomes, flat."""
        indices = self.code_indices(x)
        return self._to_map(self._codebook(indices.flatten())).flatten(1)

    def decode(self, z: Tensor) -> Tensor:
        """Return images [n, C, H, W] in the preset's range of codes [n, D * h * w]."""
        return squash(self.nets["decoder"](z.reshape(-1, *self._map)), self._range)

    @property
    def _codebook(self) -> Codebook:
        codebook = self.nets["codebook"]
        assert isinstance(codebook, Codebook)
        return codebook

    def _to_map(self, vectors: Tensor) -> Tensor:
        """Return [n, D, h, w] of vectors [n * h * w, D]."""
        size, height, width = self._map
        return vectors.view(-1, height, width, size).permute(0, 3, 1, 2)


def _vectors(map_: Tensor) -> Tensor:
    """Return [n * h * w, D] of a map [n, D, h, w], image by image and row by row."""
    return map_.permute(0, 2, 3, 1).reshape(-1, map_.shape[1])
