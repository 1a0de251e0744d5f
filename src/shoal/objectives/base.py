"""What an objective is: a formula with named parts, the networks in it, and the phases that train them.

It knows no rank, no optimizer and no logger. An autoencoder has one phase, a GAN two; the loop treats them alike.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from shoal.nets import NetConfig
from shoal.nets.family import ImageShape
from shoal.noise import Noise
from shoal.pixels import PixelRange
from shoal.strict import Strict

Scalars = Mapping[str, Tensor]
"""Named measures of a batch: [n] with one value per image, or a scalar. Names are ``group/name``."""

LatentKind = Literal["code", "linear", "prior", "posterior", "codebook"]
"""What a latent is, which decides how a trained model changes the size of it (``shoal.transplant``).

``linear`` is read as it was written, so that its space may be turned; ``prior`` is so too, and distributed as N(0, I),
or meant to be; ``posterior`` is the mean and then the log-variance of a normal distribution; ``codebook`` is linear,
and replaced by the nearest vector of a codebook; of a ``code`` nothing is known.
"""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One turn of an optimisation step: the networks it trains, and every how many batches it comes."""

    name: str
    trains: tuple[str, ...]
    every: int = 1


@dataclass(frozen=True, kw_only=True)
class LatentAxis:
    """The axis of a tensor that a larger latent makes longer: ``parts`` latents, one after the other."""

    axis: int
    parts: int = 1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of this worker in a global batch.

    Attributes:
        images: [n, C, H, W] float in the preset's range.
        labels: [n] int64 class numbers, or None where the data set has none.
        index: number of the global batch; what comes every so many batches reads it.
        rows: of the global batch, this worker's; None: all.
        size: images in the global batch; None: n.
        sum: the sum of a tensor over the workers, the same on all, without gradient; every worker calls it.
    """

    images: Tensor
    labels: Tensor | None
    index: int = 0
    rows: slice | None = None
    size: int | None = None
    sum: Callable[[Tensor], Tensor] = torch.Tensor.detach

    @property
    def share(self) -> float:
        """The part of the global batch that this worker has, in (0, 1]."""
        return 1.0 if self.size is None else len(self.images) / self.size

    def reduce(self, mean: Tensor) -> Tensor:
        """Return the mean over the global batch of what every worker knows the mean of over its rows; no gradient."""
        return self.sum(mean * self.share)

    def gather(self, values: Tensor) -> Tensor:
        """Return the rows of all workers, [size, …], of values [n, …] with one row per image; no gradient."""
        if self.size is None or self.rows is None:
            return values.detach()
        # A sum of disjoint rows is exact, and takes uneven shares, which all_gather does not.
        everyone = values.new_zeros((self.size, *values.shape[1:]))
        everyone[self.rows] = values.detach()
        return self.sum(everyone)


class ObjectiveConfig(Strict):
    """Settings of an objective; ``name`` is its entry in the registry."""

    name: str


class Objective(ABC):
    """A loss, its networks and its phases.

    ``nets`` holds the plain networks. For a phase, the engine makes a shallow copy (``using``) in which the networks
    that the phase trains are wrapped for DDP; the formula does not notice.
    """

    Config: ClassVar[type[ObjectiveConfig]]
    phases: Sequence[Phase]
    inference: tuple[str, ...]
    """The networks that a finished model needs: what the EMA follows."""
    latent_nets: ClassVar[Mapping[str, int]] = {}
    """The networks that read or write the latent, and how many lie side by side there (mean and variance: 2)."""
    latent_kind: LatentKind = "code"
    """What the latent is."""
    nets: Mapping[str, nn.Module]
    needs_labels: bool = False
    """Whether every image it trains on must have a class."""

    @abstractmethod
    def __init__(
        self,
        config: ObjectiveConfig,
        nets: NetConfig,
        shape: ImageShape,
        pixel_range: PixelRange,
        num_classes: int = 0,
    ) -> None:
        """Build the networks for images of ``shape``; ``num_classes`` is 0 for a data set without labels.

        Raises:
            ConfigError: networks that cannot make such images, or labels asked for where there are none.
        """

    @abstractmethod
    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Scalars]:
        """Return the scalar that ``phase`` minimises (a mean over the batch) and what to report of it."""

    def cautions(self, batch: int) -> list[str]:
        """Return what will work but badly at this global batch, with the arithmetic, for the user to read."""
        return []

    def latent_axes(self) -> Mapping[str, LatentAxis]:
        """Return where the latent lies in each tensor that has it, named as in ``<network>.<tensor>``."""
        return {
            f"{name}.{tensor}": LatentAxis(axis=axis, parts=parts)
            for name, parts in self.latent_nets.items()
            for tensor, axis in getattr(self.nets[name], "latent_axes", {}).items()
        }

    def to(self, device: torch.device) -> Self:
        """Move the networks to a device; return itself."""
        for net in self.nets.values():
            net.to(device)
        return self

    def using(self, nets: Mapping[str, nn.Module]) -> Self:
        """Return the same objective on other networks; those not named stay."""
        view = copy.copy(self)
        view.nets = {**self.nets, **nets}
        return view


@runtime_checkable
class Generates(Protocol):
    """An objective that makes images out of noise."""

    def sample(self, num: int, noise: Noise, labels: Tensor | None = None) -> Tensor:
        """Return ``num`` images [num, C, H, W] in the preset's range; ``noise`` must draw for ``num`` rows.

        ``labels``, int64 [num], says of which classes, where the model knows any; None leaves the choice to it.
        """


@runtime_checkable
class Reconstructs(Protocol):
    """An objective with a code for every image."""

    def encode(self, x: Tensor) -> Tensor:
        """Return codes [n, latent] of images [n, C, H, W] in the preset's range."""

    def decode(self, z: Tensor) -> Tensor:
        """Return images [n, C, H, W] in the preset's range of codes [n, latent]."""


@runtime_checkable
class HasLikelihood(Protocol):
    """An objective with an approximate posterior q(z | x), a prior p(z) and a likelihood p(x | z)."""

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of q(z | x), both [n, latent]."""

    def log_weights(self, x: Tensor, posterior: tuple[Tensor, Tensor], eps: Tensor) -> Tensor:
        """Return log p(x | z) + log p(z) - log q(z | x) in nats, [n], at z = mean + std * eps, eps [n, latent].

        Densities are those of pixels in [0, 1].
        """


@runtime_checkable
class HasCodebook(Protocol):
    """An objective that writes an image as a few numbers of codebook entries."""

    num_codes: int

    def code_indices(self, x: Tensor) -> Tensor:
        """Return the entries, int64 [n, tokens] in [0, num_codes), of images [n, C, H, W] in the preset's range."""
