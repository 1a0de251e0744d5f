"""A small evaluation while a run trains, cheap enough to be repeated, that leaves no trace in the training."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Self

from torch import Tensor

from shoal.config import RunConfig
from shoal.data import DataSet
from shoal.model import Model
from shoal.objectives import Generates, HasCodebook, HasLikelihood, Objective, Reconstructs
from shoal.quality.codes import code_measures
from shoal.quality.distance import Moments, frechet_distance, kernel_parts
from shoal.quality.extractor import Extractor
from shoal.quality.generation import Described, agreed, describe_generated, describe_real
from shoal.quality.held_out import held_out_split, num_measured
from shoal.quality.images import Sample, Workshare
from shoal.quality.likelihood import active_units, lower_bounds
from shoal.quality.reconstruction import reconstruction_errors
from shoal.quality.store import default_extractor
from shoal.world import World


class Monitor:
    """Measures the same held-out images at every look, with the same noise.

    After a look, ``parts`` holds by name the values, float64 [n] on the CPU, whose means some of the measures are: what
    the difference of two models, and its standard error, can be taken of.

    It draws from no generator but its own and puts the networks back into the mode that it found them in: the training
    is the same bit for bit with and without it.

    Args:
        objective: seen on the weights to measure: the averaged ones, where an average is kept.
        config: of the run.
        data: the data set.
        world: the workers that train together.
        num: images; None: as many as ``held_out.num_measured`` says.
        on_progress: called after every block of images.

    Raises:
        ConfigError: more images than the held-out split has.
        DataError: a damaged extractor.
    """

    def __init__(
        self,
        objective: Objective,
        config: RunConfig,
        data: DataSet,
        world: World,
        num: int | None = None,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        # No collective here: who makes a monitor may fail on one worker alone.
        self._model = Model(objective, config, data.shape, 0, world.device, data.num_classes)
        self._sample = Sample.of(data, held_out_split(config, data), num or num_measured(config, data))
        self._share = Workshare(world, data.shape, lambda what, done, total: on_progress())
        self._extractor = default_extractor(data) if self._generates else None
        self._real: Described | None = None
        self._key = _what_it_reads(config)
        self.parts: Mapping[str, Tensor] = {}

    def fits(self, config: RunConfig) -> bool:
        """Tell whether it may go on under another configuration: same images, in the same range."""
        return _what_it_reads(config) == self._key

    def following(self, objective: Objective, config: RunConfig) -> Self:
        """Return the same monitor of another model; the real images are not looked at again."""
        other = copy.copy(self)
        other._model = replace(self._model, objective=objective, config=config)
        return other

    @property
    def _generates(self) -> bool:
        """Whether there is something to compare: a distance needs two images."""
        return isinstance(self._model.objective, Generates) and len(self._sample) > 1

    def measure(self) -> dict[str, float]:
        """Return the measures by name, the same on every worker; every worker calls this at the same sample.

        Raises:
            ShoalError: that of any worker, on all.
        """
        objective, model, sample, share = self._model.objective, self._model, self._sample, self._share
        found: dict[str, float] = {}
        self.parts = {}
        if isinstance(objective, Reconstructs):
            found |= self._means(reconstruction_errors(model, sample, share, ssim=False))
        if isinstance(objective, HasLikelihood):
            bounds, posterior_means = lower_bounds(model, sample, share)
            found |= self._means(bounds)
            found["quality/active_units"] = active_units(posterior_means).value
        if isinstance(objective, HasCodebook):
            found |= {name: measure.value for name, measure in code_measures(model, sample, share).items()}
        if self._extractor is not None:
            real, generated = self._described(self._extractor)
            moments = Moments.of(real.features), Moments.of(generated.features)
            found[self._extractor.distance_name] = frechet_distance(*moments)
            found |= self._means({f"kd/{self._extractor.id}": kernel_parts(real.features, generated.features)})
        return found

    def _means(self, parts: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the means of values per image, which are kept."""
        self.parts = {**self.parts, **{name: values.cpu() for name, values in parts.items()}}
        return {name: values.mean().item() for name, values in parts.items()}

    def _described(self, extractor: Extractor) -> tuple[Described, Described]:
        """Return the real images, looked at once, and as many generated ones."""
        if self._real is None:
            extractor = self._extractor = agreed(extractor, self._model, self._share.world)
            self._real = describe_real(self._model, extractor, self._sample, self._share)
        return self._real, describe_generated(self._model, extractor, self._sample, self._share)


def _what_it_reads(config: RunConfig) -> tuple[object, ...]:
    return config.data, config.report.quality_images, config.objective.name
