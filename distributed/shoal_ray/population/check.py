"""What a search cannot do, said before anything starts; and the table of what it will do."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from shoal.compare import BY_EXTRACTOR
from shoal.config import CHANGEABLE, RunConfig, flat
from shoal.data import DataSet
from shoal.errors import ConfigError, ShoalError
from shoal.loop import check
from shoal.objectives import Generates, HasCodebook, HasLikelihood, LatentAxis, Objective, Reconstructs
from shoal.quality.better import BETTER
from shoal.quality.held_out import held_out_split
from shoal.state import build_objective
from shoal_ray.population.dimension import is_number, shown
from shoal_ray.population.directory import member_config
from shoal_ray.population.search_config import SearchConfig, price_problem

FIXED = {
    "duration_samples": "a search's length is generations x generation_samples",
    "seed": "all members see the same images and noise, or luck would be bred",
    "init_seed": "every member has first weights of its own as it is",
    "init_from": "weights come from no other run than a member of the search",
    "changes": "what changes while a member trains is what the search finds",
    "data": "members are compared on the same images",
    "report": "nothing that is learned depends on it",
    "checkpoint": "nothing that is learned depends on it",
}
"""Keys and sections that no search may change, and why."""

AFRESH = "use algorithm=random or algorithm=asha"
RESIZABLE = f"only nets.latent can change in a trained model; {AFRESH}"

PROBES = 32
"""Points of the space at which all keys are tried together: two choices of two values meet in each way with them."""

ERRORS_ALONE = ("quality/mse", "quality/psnr", "loss/reconstruction")
"""Metrics that a larger latent never makes worse."""

NEEDS: dict[str, tuple[type, str]] = {
    **dict.fromkeys(("quality/mse", "quality/psnr", "quality/ssim"), (Reconstructs, "reconstructs no images")),
    **dict.fromkeys(
        ("quality/elbo", "quality/kl", "quality/nll", "quality/active_units"), (HasLikelihood, "has no likelihood")
    ),
    **dict.fromkeys(("quality/code_usage", "quality/perplexity"), (HasCodebook, "has no codebook")),
    **dict.fromkeys(("fid", *BY_EXTRACTOR), (Generates, "generates no images")),
}
"""What an objective must be for a metric to be measured, and what else is said of it."""


def check_search(search: SearchConfig, data: DataSet, workers: int) -> list[str]:
    """Refuse a search that cannot run; return what will run but badly, for the user to read.

    Every value that ``values_to_check`` names is tried with the other keys as the run has them, then the first
    population, and as many more points of the space as ``PROBES`` says. Networks are built without memory.

    Raises:
        ConfigError: lists every problem, each with its key.
    """
    notes: list[str] = []
    problems = [*_wrong_run(search)]
    try:
        base = member_config(search, 0, {}, data)
        notes += check(base, data, workers)
    except ShoalError as error:
        raise ConfigError("\n".join([str(error), *problems])) from None
    problems += _wrong_fitness(search, base, data)
    for key in search.space:
        problems += [f"space.{key}: {problem}" for problem in _wrong_key(search, key, data, workers)]
    if not problems:
        problems += _wrong_together(search, data, workers)
    if problems:
        raise ConfigError("\n".join(problems))
    return [*dict.fromkeys([*_cautions(search, base, data), *notes])]


def search_table(search: SearchConfig) -> list[tuple[str, str, str]]:
    """Return a row for each searched key: the key, what it may become, and how a member moves."""
    return [
        (key, dimension.describe(), dimension.rule() if search.algorithm == "pbt" else "drawn once")
        for key, dimension in search.space.items()
    ]


def _wrong_run(search: SearchConfig) -> Iterator[str]:
    base = search.config_of({})
    batches = search.space["batch"].values_to_check() if "batch" in search.space else []
    batch = max([base.batch, *filter(is_number, batches)])
    if search.generation_samples < batch:
        yield (
            f"generation_samples={search.generation_samples} is less than one batch of {batch}; use"
            f" generation_samples >= {batch}"
        )
    if search.algorithm == "asha" and search.grace_generations >= search.generations:
        yield (
            f"grace_generations={search.grace_generations} of generations={search.generations} leaves no rung at which"
            " a member could end early; use fewer, or algorithm=random"
        )
    if base.changes:
        yield f"the run has changes at samples {', '.join(map(str, sorted(base.changes)))}, and {FIXED['changes']}"
    if "duration_samples" in search.set:
        yield f"set.duration_samples: {FIXED['duration_samples']}; set these instead"
    for key in sorted(search.set.keys() & search.space.keys()):
        yield f"{key} is both set and searched; leave out set.{key}, or take it out of the space with space.{key}=null"


def _wrong_fitness(search: SearchConfig, base: RunConfig, data: DataSet) -> Iterator[str]:
    fitness, objective = search.fitness, _on_meta(base, data)
    family = fitness.metric.partition("/")[0]
    metric = family if family in BETTER else fitness.metric
    if metric in NEEDS and not isinstance(objective, NEEDS[metric][0]):
        lacks = NEEDS[metric][1]
        yield f"fitness.metric={fitness.metric} is never measured: objective '{base.objective.name}' {lacks}"
    mode = {"lower": "min", "higher": "max"}.get(BETTER.get(metric, ""))
    if mode not in (None, fitness.mode):
        yield f"fitness.mode={fitness.mode}: {fitness.metric} is better the {BETTER[metric]}; use fitness.mode={mode}"
    found = flat(base.model_dump(mode="json"))
    for key in fitness.price:
        values = search.space[key].values_to_check() if key in search.space else [found[key]] if key in found else []
        problems = [price_problem(key, {key: value}) for value in values] or [price_problem(key, found)]
        yield from dict.fromkeys(filter(None, problems))


def _wrong_key(search: SearchConfig, key: str, data: DataSet, workers: int) -> Iterator[str]:
    trained = search.algorithm == "pbt"
    for name in (key, key.partition(".")[0]):
        if name in FIXED:
            yield f"cannot be searched: {FIXED[name]}"
            return
    models: dict[str, _Structure] = {}
    for value in search.space[key].values_to_check():
        try:
            config = member_config(search, 0, {key: value}, data)
            check(config, data, workers)
        except ShoalError as error:
            if str(error).startswith("unknown key"):
                yield str(error)
                return
            yield f"at {shown(value)}: {error}"
        else:
            models[shown(value)] = _Structure.of(config, data)
    if not trained:
        return
    if key.startswith("nets.") and key != "nets.latent":
        yield RESIZABLE
        return
    if key == "objective.name" or not _is_changeable(key):
        yield f"cannot change in a trained model; {AFRESH}"
        return
    if not models:
        return
    (first, model), *others = models.items()
    for value, other in others:
        if difference := model.difference(other):
            yield f"{RESIZABLE}. From {first} to {value}, {difference}"
            return


def _wrong_together(search: SearchConfig, data: DataSet, workers: int) -> Iterator[str]:
    """Yield why values that are fine one by one are not so together; the same reason once."""
    reasons: set[str] = set()
    draw = search.space.sample
    for values in [*draw(search.population, search.seed), *draw(PROBES, search.seed)]:
        try:
            check(member_config(search, 0, values, data), data, workers)
        except ShoalError as error:
            if str(error) not in reasons:
                named = ", ".join(f"{key}={shown(value)}" for key, value in values.items())
                yield f"values of the space that do not go together, {named}: {error}"
            reasons.add(str(error))


def _is_changeable(key: str) -> bool:
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in CHANGEABLE)


def _on_meta(config: RunConfig, data: DataSet) -> Objective:
    with torch.device("meta"):  # shapes only: costs no memory
        return build_objective(config, data.shape, data.num_classes)


@dataclass(frozen=True)
class _Structure:
    """What of a trained model must stay for another configuration to go on with it.

    Attributes:
        shapes: of every tensor of the networks.
        latent_axes: where in them a larger latent shows.
        has_average: whether averaged weights are kept.
        optimizers: what each phase's optimizer remembers of a weight.
    """

    shapes: Mapping[str, tuple[int, ...]]
    latent_axes: Mapping[str, LatentAxis]
    has_average: bool
    optimizers: Mapping[str, str]

    @classmethod
    def of(cls, config: RunConfig, data: DataSet) -> "_Structure":
        objective, optim = _on_meta(config, data), config.optim
        shapes = {
            f"{name}.{tensor}": tuple(values.shape)
            for name, net in objective.nets.items()
            for tensor, values in net.state_dict().items()
        }
        optimizers = {}
        for phase in objective.phases:
            override = optim.phases.get(phase.name)
            momentum = ((override and override.betas) or optim.betas)[0] > 0
            optimizers[phase.name] = "two moments" if optim.name != "sgd" else "a momentum" if momentum else "nothing"
        return cls(shapes, objective.latent_axes(), config.ema.half_life_samples > 0, optimizers)

    def difference(self, other: "_Structure") -> str | None:
        """Return what is not the same in another model beside the size of the latent, or None."""
        for name in sorted(self.shapes.keys() | other.shapes.keys()):
            one, two = self.shapes.get(name), other.shapes.get(name)
            if one is None or two is None:
                return f"tensor {name} {'appears' if one is None else 'disappears'}"
            if self._without_latent(name) != other._without_latent(name):
                return f"tensor {name} changes from {list(one)} to {list(two)}"
        if self.has_average != other.has_average:
            return f"the averaged weights {'disappear' if self.has_average else 'appear'}"
        for phase, memory in self.optimizers.items():
            if (now := other.optimizers.get(phase)) != memory:
                return f"the optimizer of phase '{phase}' remembers {now} of a weight instead of {memory}"
        return None

    def _without_latent(self, name: str) -> tuple[int, ...]:
        shape = self.shapes[name]
        if name not in self.latent_axes:
            return shape
        axis = self.latent_axes[name].axis % len(shape)
        return (*shape[:axis], 0, *shape[axis + 1 :])


def _cautions(search: SearchConfig, base: RunConfig, data: DataSet) -> Iterator[str]:
    fitness = search.fitness
    if fitness.metric in ERRORS_ALONE and "nets.latent" in search.space and not fitness.price.get("nets.latent"):
        yield (
            f"fitness.metric={fitness.metric} with nets.latent in the space always picks the largest latent: a longer"
            " code never reconstructs worse. Charge for it, e.g. fitness.price.nets.latent=2.0e-5"
        )
    split = held_out_split(base, data)
    if fitness.images > (rows := data.num_rows(split)):
        yield f"fitness.images={fitness.images} is more than the {rows} images of split '{split}'; fitness is of those"
    share, population = search.exploit.max_share, search.population
    if search.algorithm == "pbt" and share * population + 1e-9 < 2:
        yield (
            f"exploit.max_share={share:g} of {population} members is less than two, so no member can take another's"
            f" weights before the last third; use exploit.max_share >= {math.ceil(200 / population) / 100:g}"
        )
