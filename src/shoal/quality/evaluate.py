"""How good a model is: every measure that its kind allows, on one split, by all workers together."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from torch import Tensor

from shoal.data import DataSet
from shoal.errors import DataError, RunError
from shoal.memory import keep_freed_memory
from shoal.model import Model
from shoal.objectives import Generates, HasCodebook, HasLikelihood, Reconstructs
from shoal.quality.codes import code_measures
from shoal.quality.extractor import Extractor, refuse_other_data
from shoal.quality.generation import (
    agreed,
    describe_generated,
    describe_real,
    generation_by_class,
    generation_measures,
)
from shoal.quality.images import Progress, Sample, Workshare
from shoal.quality.likelihood import active_units, lower_bounds, negative_log_likelihoods
from shoal.quality.measure import Measure, means, means_by_class
from shoal.quality.reconstruction import reconstruction_errors
from shoal.quality.store import default_extractor
from shoal.world import World

GENERATED_IMAGES = 10_000
"""To compare with real ones, unless ``num`` says otherwise; the distances depend on it."""
LIKELIHOOD_IMAGES = 1_000
"""For the importance-sampled likelihood, which decodes each of them some hundred times."""


@dataclass(frozen=True)
class Evaluation:
    """Measures of a model on a split, as ``eval.json`` holds them.

    Attributes:
        split: that was measured on.
        num_samples: images of it.
        metrics: every measure by name.
        details: by the same names: ``n`` images; ``low`` and ``high``, the 95 % interval; ``floor``, what real images
            get; ``ratio``, a Frechet distance over its floor; ``of``, the largest possible value of a count.
        per_class: by class name; see ``means_by_class`` and ``generation_by_class``.
        extractor: what is known of it, with its ``id``; None where none was needed.
        samples: images that the model had been trained on.
        fingerprint: of the data set.
    """

    split: str
    num_samples: int
    metrics: dict[str, float]
    details: dict[str, dict[str, float]]
    per_class: dict[str, dict[str, float]]
    extractor: dict[str, Any] | None
    samples: int
    fingerprint: str


def evaluate(
    model: Model,
    data: DataSet,
    split: str = "test",
    *,
    world: World | None = None,
    num: int | None = None,
    extractor: Extractor | None = None,
    importance_samples: int = 200,
    progress: Progress = lambda what, done, total: None,
) -> Evaluation:
    """Measure a model; every worker of the world calls this and gets the same.

    Reconstructions and codes are measured on all images of the split, generated images against ``GENERATED_IMAGES`` of
    them at most, importance-sampled likelihoods on ``LIKELIHOOD_IMAGES``; fewer images are a random choice that is
    always the same. Results do not depend on the number of workers.

    Args:
        model: to measure.
        data: the data set.
        split: of it.
        world: the workers; None: this process alone, on the model's device.
        num: images; None: as many as said above.
        extractor: of the features of images; None: the data set's default.
        importance_samples: for each image of the likelihood.
        progress: told of every block.

    Raises:
        DataError: no such split, fewer images in it than ``num``, or an extractor that does not fit.
        RunError: images of another shape, or a model that has diverged.
    """
    keep_freed_memory()
    world = world or World.local(model.device)
    share = Workshare(world, data.shape, progress)
    generates = isinstance(model.objective, Generates)

    def prepare() -> tuple[Sample, Extractor | None]:
        model.refuse_other_shape(data)
        sample = Sample.of(data, split, num)
        if generates and len(sample) < 2:
            raise DataError(f"split '{split}' was to be measured on {len(sample)} image; a distance needs 2 at least")
        if not generates:
            return sample, None
        chosen = extractor or default_extractor(data)
        refuse_other_data(chosen.facts, data)
        return sample, chosen

    sample, extractor = world.together(prepare)
    measures, per_class = _by_image(model, sample, share, importance_samples)
    if extractor is not None:
        # Where all images of a split were asked for, not all of them need a generated one beside them.
        compared = sample if num else Sample.of(data, split, min(len(sample), GENERATED_IMAGES))
        extractor = agreed(extractor, model, world)
        found, by_class = _generation(model, compared, extractor, share)
        sample = sample if measures else compared
        measures |= found
        per_class = {name: per_class.get(name, {}) | by_class.get(name, {}) for name in data.class_names or ()}
    refuse_divergence(measures, model)
    return Evaluation(
        split=split,
        num_samples=len(sample),
        metrics={name: measure.value for name, measure in measures.items()},
        details={name: measure.details() for name, measure in measures.items()},
        per_class={name: values for name, values in per_class.items() if values},
        extractor=None if extractor is None else {"id": extractor.id, **asdict(extractor.facts)},
        samples=model.samples,
        fingerprint=data.fingerprint,
    )


def _by_image(
    model: Model, sample: Sample, share: Workshare, importance_samples: int
) -> tuple[dict[str, Measure], dict[str, dict[str, float]]]:
    """Return the measures that each image has its own value of, over all images and by class."""
    objective = model.objective
    values: dict[str, Tensor] = {}
    others: dict[str, Measure] = {}
    if isinstance(objective, Reconstructs):
        values |= reconstruction_errors(model, sample, share)
    if isinstance(objective, HasLikelihood):
        bounds, posterior_means = lower_bounds(model, sample, share)
        values |= bounds
        few = Sample.of(sample.data, sample.split, min(len(sample), LIKELIHOOD_IMAGES))
        others |= means({"quality/nll": negative_log_likelihoods(model, few, share, importance_samples)})
        others["quality/active_units"] = active_units(posterior_means)
    if isinstance(objective, HasCodebook):
        others |= code_measures(model, sample, share)
    return means(values) | others, means_by_class(values, sample.labels(), sample.data.class_names)


def _generation(
    model: Model, sample: Sample, extractor: Extractor, share: Workshare
) -> tuple[dict[str, Measure], dict[str, dict[str, float]]]:
    """Return the measures of generated images against those of the sample, over all images and by class."""
    real = describe_real(model, extractor, sample, share)
    others = floor_sample(model, sample)
    floor = None if others is None else describe_real(model, extractor, others, share)
    generated = describe_generated(model, extractor, sample, share)
    share.progress("distances", 0, 1)
    measures = generation_measures(real, generated, floor, extractor)
    by_class = generation_by_class(real, generated, floor, sample.data.class_names)
    share.progress("distances", 1, 1)
    return measures, by_class


def floor_sample(model: Model, sample: Sample) -> Sample | None:
    """Return as many other real images: of what the model was trained on or, if that is measured, of the same split.

    None where there are not enough of them: a distance between fewer images would be another one.
    """
    data, trained_on = sample.data, model.config.data.split
    try:
        span, measured = data.span(trained_on), data.span(sample.split)
    except DataError:  # another data set than it was trained on
        return None
    overlaps = span.first < measured.first + measured.rows and measured.first < span.first + span.rows
    if overlaps and span != measured:
        return None
    taken = len(sample) if overlaps else 0
    if span.rows - taken < len(sample):
        return None
    return Sample.of(data, trained_on, len(sample), after=taken)


def refuse_divergence(measures: Mapping[str, Measure], model: Model) -> None:
    """Refuse measures that are not numbers.

    Raises:
        RunError: names the first.
    """
    for name, measure in measures.items():
        if not isfinite(measure.value):
            raise RunError(
                f"{name} is {measure.value} after {model.samples:,} samples; the run has diverged. Go on from an"
                " earlier checkpoint with a lower optim.lr, or with optim.clip"
            )
