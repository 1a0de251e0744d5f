"""How generated images compare with real ones, in the features of a named extractor."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shoal.errors import DivergenceError, RunError
from shoal.model import Model
from shoal.objectives import Generates
from shoal.pixels import to_uint8
from shoal.quality.bootstrap import frechet_interval, inception_interval, kernel_interval
from shoal.quality.distance import Moments, frechet_distance, inception_score, kernel_distance
from shoal.quality.extractor import Extractor
from shoal.quality.images import Block, Sample, Workshare
from shoal.quality.manifold import MIN_IMAGES, Neighbourhoods, neighbourhoods
from shoal.quality.measure import Measure, means
from shoal.render import inference
from shoal.world import World


@dataclass(frozen=True)
class Described:
    """Images as an extractor sees them.

    Attributes:
        features: float64 [n, d].
        probabilities: of each class, float64 [n, classes], where the extractor tells classes apart.
        labels: int64 [n] with -1 for none: of real images their class, of generated ones the class asked for.
    """

    features: Tensor
    probabilities: Tensor | None = None
    labels: Tensor | None = None

    @property
    def taken(self) -> Tensor | None:
        """What a classifier takes the images for, int64 [n] on the CPU; None of any other extractor."""
        if self.probabilities is None:
            return None
        return self.probabilities.argmax(1).cpu()

    def of_class(self, number: int) -> Tensor:
        """Return the features of one class."""
        assert self.labels is not None
        return self.features[(self.labels == number).to(self.features.device)]


def agreed(extractor: Extractor, model: Model, world: World) -> Extractor:
    """Return the first worker's extractor on all, on the model's device: shared storage may show them another."""
    return world.first_says(lambda: extractor).to(model.device)


def describe_real(model: Model, extractor: Extractor, sample: Sample, share: Workshare) -> Described:
    """Return the real images of a sample as the extractor sees them."""
    found = share.tables(
        f"features of {sample.split}",
        len(sample),
        lambda block: _seen(extractor, sample.pixels(block, model.device)),
    )
    return Described(**found, labels=sample.labels())


def describe_generated(model: Model, extractor: Extractor, sample: Sample, share: Workshare) -> Described:
    """Return as many generated images as a sample has, as the extractor sees them.

    Their noise is the same for every model. A conditional model is asked for the classes of the sample's images; where
    one has none, for each class in turn.

    Raises:
        RunError: images that are not numbers, or classes that the model does not know.
    """
    objective = model.objective
    assert isinstance(objective, Generates)
    labels = _asked(model, sample)

    def work(block: Block) -> dict[str, Tensor]:
        of_block = None if labels is None else labels[block.rows].to(model.device)
        with inference(objective.nets):
            images = objective.sample(block.num, block.noise(model.device), of_block)
        if not bool(images.isfinite().all()):
            raise DivergenceError(
                f"after {model.samples:,} samples the model makes images that are not numbers; it has diverged. Go on"
                " from an earlier checkpoint with a lower optim.lr, or with optim.clip"
            )
        return _seen(extractor, to_uint8(images, model.config.data.range))

    return Described(**share.tables("generating", len(sample), work), labels=labels)


def _asked(model: Model, sample: Sample) -> Tensor | None:
    labels = sample.labels()
    if not model.objective.needs_labels or labels is None:
        return None
    if int(labels.max()) >= model.num_classes:
        raise RunError(
            f"the run knows {model.num_classes} classes, {sample.data.location} has {sample.data.num_classes}; measure"
            " it on the data set that it was trained on"
        )
    in_turn = torch.arange(len(labels)) % model.num_classes
    return torch.where(labels >= 0, labels, in_turn)


def _seen(extractor: Extractor, pixels: Tensor) -> dict[str, Tensor]:
    # Eight bits for generated images too, or an extractor could tell them by that alone.
    features, logits = extractor(pixels)
    seen = {"features": features}
    return seen if logits is None else {**seen, "probabilities": logits.softmax(1)}


def distances(real: Described, generated: Described, extractor: Extractor) -> dict[str, float]:
    """Return the two distances alone, without intervals: what a run can afford at every look."""
    return {
        extractor.distance_name: frechet_distance(Moments.of(real.features), Moments.of(generated.features)),
        f"kd/{extractor.id}": kernel_distance(real.features, generated.features),
    }


def generation_measures(
    real: Described, generated: Described, floor: Described | None, extractor: Extractor
) -> dict[str, Measure]:
    """Return every measure of generated images against as many real ones.

    ``fd`` (``fid``), ``kd``, ``is``, ``precision``, ``recall``, ``density`` and ``coverage``, each with the extractor's
    name, and ``agreement``: how often a classifier finds the class that a conditional model was asked for. ``floor``
    are other real images, as many: what the measures say of them is the best that can be expected.
    """
    x, y, n, name = real.features, generated.features, len(generated.features), extractor.id
    least = {} if floor is None else distances(real, floor, extractor)
    distance, nearest = frechet_distance(Moments.of(x), Moments.of(y)), least.get(extractor.distance_name)
    measure = Measure.within(distance, n, frechet_interval(x, y, distance), nearest)
    kernel, interval = kernel_interval(x, y)
    found = {
        extractor.distance_name: replace(measure, ratio=distance / nearest if nearest else None),
        f"kd/{name}": Measure.within(kernel, n, interval, least.get(f"kd/{name}")),
    }
    if generated.probabilities is not None:
        score, interval = inception_interval(generated.probabilities)
        of_real = None if floor is None or floor.probabilities is None else inception_score(floor.probabilities)
        found[f"is/{name}"] = Measure.within(score, n, interval, of_real)
    right = agreement(generated)
    if right is not None:
        found[f"agreement/{name}"] = Measure(right, n)
    if n >= MIN_IMAGES:
        of_floor = None if floor is None else neighbourhoods(x, floor.features)
        found |= _neighbourhood_measures(neighbourhoods(x, y), of_floor, name)
    return found


def _neighbourhood_measures(found: Neighbourhoods, floor: Neighbourhoods | None, name: str) -> dict[str, Measure]:
    """Return the means; their intervals take the neighbourhoods as given."""
    measures = means(found._asdict())
    least = {} if floor is None else {kind: values.mean().item() for kind, values in floor._asdict().items()}
    return {f"{kind}/{name}": replace(measure, floor=least.get(kind)) for kind, measure in measures.items()}


def generation_by_class(
    real: Described, generated: Described, floor: Described | None, class_names: list[str] | None
) -> dict[str, dict[str, float]]:
    """Return for every class how many of the images are of it, and how good these are.

    ``share`` and ``real_share``: of the generated and of the real images that the classifier takes for this class; a
    class that a model has lost has none. Where the model was asked for classes: ``agreement``, how often the classifier
    finds what was asked for, ``fd`` between real and generated images of this class, and ``fd_floor``.
    """
    return {
        name: values
        for number, name in enumerate(class_names or ())
        if (values := _shares(real, generated, number) | _distances_of_class(real, generated, floor, number))
    }


def agreement(generated: Described, number: int | None = None) -> float | None:
    """Return how often the classifier finds the class that the model was asked for, of all or of one class.

    None where it was not asked, or the extractor tells no classes apart.
    """
    if generated.labels is None or generated.taken is None:
        return None
    asked = slice(None) if number is None else generated.labels == number
    right = (generated.taken == generated.labels)[asked]
    return right.double().mean().item() if len(right) else None


def _shares(real: Described, generated: Described, number: int) -> dict[str, float]:
    if generated.taken is None or real.taken is None:
        return {}
    found = {
        "share": (generated.taken == number).double().mean().item(),
        "real_share": (real.taken == number).double().mean().item(),
    }
    right = agreement(generated, number)
    return found if right is None else {**found, "agreement": right}


def _distances_of_class(
    real: Described, generated: Described, floor: Described | None, number: int
) -> dict[str, float]:
    if generated.labels is None:
        return {}
    found = {}
    for name, other in (("fd", generated), ("fd_floor", floor)):
        if other is not None and min(len(real.of_class(number)), len(other.of_class(number))) >= 2:
            one, two = Moments.of(real.of_class(number)), Moments.of(other.of_class(number))
            found[name] = frechet_distance(one, two)
    return found
