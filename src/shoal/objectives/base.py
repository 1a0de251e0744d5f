"""What an objective is: a formula with named parts, the networks in it, and the phases that train them.

It knows no rank, no optimizer and no logger. An autoencoder has one phase, a GAN two; the loop treats them alike.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from shoal.nets import NetConfig
from shoal.nets.family import ImageShape
from shoal.noise import Noise
from shoal.pixels import PixelRange
from shoal.strict import Strict

Scalars = Mapping[str, Tensor]
"""Named measures of a batch: [n] with one value per image, or a scalar. Names are ``group/name``."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One turn of an optimisation step: the networks it trains, and every how many batches it comes."""

    name: str
    trains: tuple[str, ...]
    every: int = 1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of this worker in a global batch.

    Attributes:
        images: [n, C, H, W] float in the preset's range.
        labels: [n] int64 class numbers, or None where the data set has none.
        reduce: mean of a tensor over the workers, weighted by their rows, without gradient; the
            value itself when alone.
    """

    images: Tensor
    labels: Tensor | None
    reduce: Callable[[Tensor], Tensor] = lambda value: value


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
    nets: Mapping[str, nn.Module]

    @abstractmethod
    def __init__(
        self, config: ObjectiveConfig, nets: NetConfig, shape: ImageShape, pixel_range: PixelRange
    ) -> None: ...

    @abstractmethod
    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Scalars]:
        """Return the scalar that ``phase`` minimises (a mean over the batch) and what to report of it."""

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

    def sample(self, num: int, noise: Noise) -> Tensor:
        """Return ``num`` images [num, C, H, W] in the preset's range; ``noise`` must draw for ``num`` rows."""


@runtime_checkable
class Reconstructs(Protocol):
    """An objective with a code for every image."""

    def encode(self, x: Tensor) -> Tensor:
        """Return codes [n, latent] of images [n, C, H, W] in the preset's range."""

    def decode(self, z: Tensor) -> Tensor:
        """Return images [n, C, H, W] in the preset's range of codes [n, latent]."""
