"""Measure what models of any project have made, by the same code and in the same features."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from contender import OUTPUTS, parts
from safetensors import safe_open
from torch import Tensor

from shoal.data import DataSet
from shoal.model import load_model
from shoal.objectives import Generates, HasCodebook, HasLikelihood, Reconstructs
from shoal.objectives.vae import kl_to_standard_normal
from shoal.pixels import to_float, to_uint8
from shoal.quality.distance import Moments, frechet_distance
from shoal.quality.extractor import Extractor
from shoal.quality.images import Sample
from shoal.render import inference


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a model has made; float images are [n, C, H, W] in [0, 1], in the order of the test images.

    Attributes:
        parameters: numbers that its networks learn.
        reconstructions: of the test images.
        bits_per_image: what the codes can say (VQ-VAE) or say on average (VAE: the KL divergence from the prior).
        samples: images out of noise.
    """

    parameters: int
    reconstructions: Tensor | None = None
    bits_per_image: float | None = None
    samples: Tensor | None = None

    @classmethod
    def of_contender(cls, folder: Path) -> Self:
        """Read what a contender left."""
        with safe_open(folder / OUTPUTS, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            facts = file.metadata()
        bits = float(facts["bits_per_image"]) if "bits_per_image" in facts else None
        if "mean" in found:
            bits = _bits(found["mean"], found["log_variance"])
        return cls(
            parameters=int(facts["parameters"]),
            reconstructions=found.get("reconstructions"),
            bits_per_image=bits,
            samples=found.get("samples"),
        )

    @classmethod
    def of_run(cls, path: Path, pixels: Tensor) -> Self:
        """Let a Shoal run reconstruct ``pixels``, uint8 [n, C, H, W], and generate as many images, where it can."""
        model = load_model(path)
        objective = model.objective
        reconstructions = bits = samples = None
        if isinstance(objective, Reconstructs):
            reconstructions = torch.cat([model.reconstruct(part) for part in parts(pixels)])
        with inference(objective.nets):
            inputs = (to_float(part.to(model.device), model.config.data.range) for part in parts(pixels))
            if isinstance(objective, HasLikelihood):
                posterior = zip(*(objective.posterior(x) for x in inputs), strict=True)
                mean, log_variance = (torch.cat(list(values)).cpu() for values in posterior)
                bits = _bits(mean, log_variance)
            elif isinstance(objective, HasCodebook):
                bits = objective.code_indices(next(inputs)).shape[1] * math.log2(objective.num_codes)
        if isinstance(objective, Generates):
            samples = torch.cat([model.sample(len(part), seed=index) for index, part in enumerate(parts(pixels))])
        return cls(
            parameters=sum(weights.numel() for net in objective.nets.values() for weights in net.parameters()),
            reconstructions=reconstructions,
            bits_per_image=bits,
            samples=samples,
        )


def _bits(mean: Tensor, log_variance: Tensor) -> float:
    return kl_to_standard_normal(mean.double(), log_variance.double()).mean().item() / math.log(2)


class Judge:
    """Compares with the same test images and in the features of the same extractor.

    Args:
        data: the data set.
        extractor: of the features.
        num: images of the test split, and as many of each model.
    """

    def __init__(self, data: DataSet, extractor: Extractor, num: int) -> None:
        self.extractor = extractor
        self.pixels, train = (
            torch.from_numpy(data.fetch(Sample.of(data, split, num).ids)) for split in ("test", "train")
        )
        self._real = self._moments(self.pixels)
        self.floor = frechet_distance(self._moments(train), self._real)
        """The distance of as many training images from the test images."""

    def __call__(self, outputs: Outputs) -> dict[str, float]:
        """Return what there is to measure.

        ``mse`` over images and pixels in [0, 1], ``psnr`` in dB as the mean over images, ``bits_per_image``,
        ``parameters``, and ``fd``: the Frechet distance of the samples from the test images.
        """
        found: dict[str, float] = {"parameters": outputs.parameters}
        if outputs.bits_per_image is not None:
            found["bits_per_image"] = outputs.bits_per_image
        if outputs.reconstructions is not None:
            errors = (outputs.reconstructions.double() - self.pixels.double() / 255).square().flatten(1).mean(1)
            found |= {"mse": errors.mean().item(), "psnr": (-10 * errors.log10()).mean().item()}
        if outputs.samples is not None:
            distance = frechet_distance(self._moments(to_uint8(outputs.samples, "unit")), self._real)
            found |= {"fd": distance, "fd_over_floor": distance / self.floor}
        return found

    def _moments(self, pixels: Tensor) -> Moments:
        return Moments.of(torch.cat([self.extractor(part)[0].double() for part in parts(pixels)]))
