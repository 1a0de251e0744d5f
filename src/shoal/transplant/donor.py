"""What is asked of a trained model before the size of its latent changes: its weights, and its codes of images."""

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from shoal.config import RunConfig
from shoal.errors import RunError
from shoal.nets.family import ImageShape
from shoal.objectives import HasLikelihood, Objective, Reconstructs
from shoal.pixels import to_float
from shoal.state import build_objective
from shoal.transplant.layout import Layout, Site
from shoal.transplant.spectral import sigma

Result = TypeVar("Result")

AT_ONCE = 256
"""Images in one pass through the networks."""


class Donor:
    """A trained model, by its averaged weights wherever an average is kept: they are what is shown and measured.

    Args:
        tensors: of its state.
        config: of its run.
        shape: of its images.
        num_classes: of its data set.
        images: uint8 [n, C, H, W], which its codes are of.
        layout: where its latent lies.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        config: RunConfig,
        shape: ImageShape,
        num_classes: int,
        images: Tensor,
        layout: Layout,
    ) -> None:
        self._tensors = tensors
        self._config = config
        self._shape = shape
        self._num_classes = num_classes
        self._images = images
        self._averaged = {name[4:].partition(".")[0] for name in tensors if name.startswith("ema/")}
        self.layout = layout

    def tensor(self, name: str) -> Tensor:
        """Return ``<network>.<tensor>``, float64."""
        return self._tensors[f"{self._group(name)}/{name}"].double()

    def sigma(self, site: Site) -> float:
        """Return what the spectral norm divides a weight by; 1 without."""
        return sigma(self._tensors, self._group(site.name), site)

    def columns(self) -> Tensor:
        """Return all that reads the latent as one matrix [m, latent], float64."""
        read = [
            self.tensor(site.name).movedim(site.axis, -1).reshape(-1, self.layout.before) / self.sigma(site)
            for site in self.layout.weights("reads")
        ]
        return finite(torch.cat(read)) if read else torch.eye(self.layout.before, dtype=torch.float64)

    def codes(self) -> Tensor | None:
        """Return codes of the images, [rows, latent] float64, of maps one row a place; None if it has no encoder."""
        objective = self._objective
        if not isinstance(objective, Reconstructs):
            return None
        codes = torch.cat(self._by_passes(objective.encode)).double()
        return finite(codes).reshape(len(codes), self.layout.before, -1).transpose(1, 2).flatten(0, 1)

    def posterior(self) -> tuple[Tensor, Tensor] | None:
        """Return mean and log-variance of q(z | x), [n, latent] float64 each; None if it has no posterior."""
        objective = self._objective
        if not isinstance(objective, HasLikelihood):
            return None
        means, log_variances = zip(*self._by_passes(objective.posterior), strict=True)
        return finite(torch.cat(means).double()), finite(torch.cat(log_variances).double())

    def written(self) -> Tensor | None:
        """Return all that is written to the latent for the images, [rows, latent] float64; None without an encoder.

        Of a model with a codebook it is the encoder's vectors, and those of the codebook in their place.
        """
        layers = {site.layer for site in self.layout.weights("writes") if site.parts == 1}
        outputs = [output for _, output in self._calls(layers)]
        if not outputs:
            return None
        size = self.layout.before
        return finite(torch.cat([output.double().movedim(1, -1).reshape(-1, size) for output in outputs]))

    def inputs(self, layer: str) -> Tensor | None:
        """Return what a layer of an encoder is given for the images, [n, units] float64; None unless it is vectors."""
        inputs = [given.double() for given, _ in self._calls({layer})]
        return finite(torch.cat(inputs)) if inputs and inputs[0].ndim == 2 else None

    def _calls(self, layers: Collection[str]) -> list[tuple[Tensor, Tensor]]:
        """Return what layers are given and give while the images are encoded; nothing without an encoder."""
        calls: list[tuple[Tensor, Tensor]] = []
        objective = self._objective if layers else None
        if isinstance(objective, Reconstructs):
            with ExitStack() as watching:
                for net, _, path in (layer.partition(".") for layer in layers):
                    module = objective.nets[net].get_submodule(path)
                    hook = module.register_forward_hook(lambda _, given, output: calls.append((given[0], output)))
                    watching.callback(hook.remove)
                self._by_passes(objective.encode)
        return calls

    def _group(self, name: str) -> str:
        """Return whether a network's averaged weights are looked at, or the plain ones."""
        return "ema" if name.partition(".")[0] in self._averaged else "nets"

    @cached_property
    def _objective(self) -> Objective:
        objective = build_objective(self._config, self._shape, self._num_classes)
        for name, net in objective.nets.items():
            prefix = f"{self._group(name)}/{name}."
            net.load_state_dict(
                {key.removeprefix(prefix): value for key, value in self._tensors.items() if key.startswith(prefix)}
            )
            net.eval()
        return objective

    @torch.no_grad()
    def _by_passes(self, read: Callable[[Tensor], Result]) -> list[Result]:
        assert len(self._images), "the use of a latent is measured on images"
        pixel_range = self._config.data.range
        return [read(to_float(some, pixel_range)) for some in torch.split(self._images, AT_ONCE)]


def finite(values: Tensor) -> Tensor:
    """Return the values.

    Raises:
        RunError: one is not a number.
    """
    if not values.isfinite().all():
        raise RunError(
            "the trained model's codes or weights are not all finite, so what it uses of its latent cannot be told;"
            " change the latent of a checkpoint from before it diverged"
        )
    return values
