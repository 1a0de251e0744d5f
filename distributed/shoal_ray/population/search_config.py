"""The declaration of a population search: which run, what may change in it, how long, and what counts as better."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt, field_serializer

from shoal.config import RunConfig, build_config, flat, merge, parse_override, read_config, read_yaml
from shoal.errors import ConfigError, did_you_mean
from shoal.strict import Count, Strict, parse
from shoal_ray.population.dimension import MOVES, Value, is_number, shown
from shoal_ray.population.kinds import KINDS
from shoal_ray.population.space import Space

FOLDER = Path("tune_configs")
"""Where a search without ``.yaml`` is looked for, in the current directory."""

Algorithm = Literal["pbt", "asha", "random"]


class FitnessConfig(Strict):
    """What counts as better: a metric, and what each unit of a size costs."""

    metric: str = Field(description="a scalar of the run; the extractor's name may be left out: kd, fd")
    mode: Literal["min", "max"] = Field(description="whether a small or a large metric is good")
    price: dict[str, Annotated[float, Field(ge=0)]] = Field({}, description="by key, per unit, in units of the metric")
    images: Count = Field(2_000, gt=0, description="held-out images to measure on, the same for every member")
    held_out: float = Field(
        0.1, ge=0.01, le=0.99, description="the last share of the split, which no member trains on, in hundredths"
    )

    def natural(self, scalars: Mapping[str, float], values: Mapping[str, Value]) -> float:
        """Return the metric with the prices charged, in its own units and direction.

        ``values`` holds every priced key, as ``SearchConfig.priced`` gives them.

        Raises:
            ConfigError: no such metric in ``scalars``.
        """
        charge = sum((each * float(values[key]) for key, each in self.price.items()), 0.0)
        return scalars[find_metric(self.metric, scalars)] + (charge if self.mode == "min" else -charge)

    def score(self, fitness: float | None) -> float | None:
        """Return a fitness as a number of which more is better; None where there is none."""
        return fitness if fitness is None or self.mode == "max" else -fitness


class ExploitConfig(Strict):
    """When a member may take another's weights."""

    min_gap: float = Field(2.0, ge=0, description="least lead of the other, in standard errors of the difference")
    max_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="of the population that may descend from one first member before the last third; then others give",
    )


class StopConfig(Strict):
    """What ends a search before its last generation."""

    hours: PositiveFloat | None = None
    plateau_generations: PositiveInt | None = Field(None, description="generations without a better best")


def _dotted(value: object) -> object:
    return flat(value) if isinstance(value, Mapping) else value


class SearchConfig(Strict):
    """Everything that decides what a search finds. Durations count samples of one member."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    run: RunConfig = Field(description="a preset, a YAML file (relative to the search's), or a whole configuration")
    set: Annotated[dict[str, Any], BeforeValidator(_dotted)] = Field({}, description="overrides of the run, by key")
    space: Space
    population: int = Field(8, ge=2, description="members")
    generation_samples: Count = Field(30_000, gt=0, description="images of a member from one look to the next")
    generations: Count = Field(10, gt=0)
    algorithm: Algorithm = "pbt"
    synchronous: bool = Field(True, description="pbt: a generation waits for its last member")
    quantile: float = Field(
        0.25, gt=0, le=0.5, description="pbt: the worst this share, rounded up, takes from the best this share"
    )
    reduction_factor: float = Field(3, gt=1, description="asha: one in this many goes on at a rung")
    grace_generations: PositiveInt = Field(1, description="asha: before the first rung")
    fitness: FitnessConfig
    exploit: ExploitConfig = ExploitConfig()
    stop: StopConfig = StopConfig()
    seed: int = Field(0, ge=0, lt=2**63, description="of the members' values; the run's own seed is in the run")

    @property
    def samples(self) -> int:
        """Images that a member sees from the first generation to the last."""
        return self.generations * self.generation_samples

    def config_of(self, values: Mapping[str, Value]) -> RunConfig:
        """Return the run of a member with these values of the space, as long as the search.

        Raises:
            ConfigError: a key or value that the run does not take.
        """
        config = merge(self.run.model_dump(mode="json"), _nested(self.set))
        return build_config({**merge(config, _nested(values)), "duration_samples": self.samples})

    def priced(self, values: Mapping[str, Value]) -> dict[str, float]:
        """Return what each priced key is in a member with these values, searched or not.

        Raises:
            ConfigError: a priced key that is not a number of the run.
        """
        found = flat(self.config_of(values).model_dump(mode="json"))
        for key in self.fitness.price:
            if problem := price_problem(key, found):
                raise ConfigError(problem)
        return {key: found[key] for key in self.fitness.price}

    @field_serializer("space")
    def _plain_space(self, space: Space) -> dict[str, Any]:
        return space.plain()

    def to_yaml(self) -> str:
        """Write every key, the run's too, so that the file alone says what was searched."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def read_search(source: str | Path, overrides: Sequence[str] = ()) -> SearchConfig:
    """Read a YAML file, or a name in ``tune_configs/``, and apply ``key.sub=value`` overrides.

    ``run.KEY`` and ``set.KEY`` override the run, ``space.KEY.uniform=[0, 1]`` a dimension (another kind starts it
    afresh), and ``space.KEY=null`` takes a key out of the space.

    Raises:
        ConfigError: no such file, malformed YAML, or a bad key or value.
    """
    path = _find(source)
    values = _with_mappings(read_yaml(path))
    for override in overrides:
        values = _with_mappings(_overridden(values, override))
    sections = {**values, "run": _read_run(values.get("run"), path.parent), "space": Space.read(values["space"])}
    search = parse(SearchConfig, sections)
    search.config_of({})
    return search


def price_problem(key: str, found: Mapping[str, Value]) -> str | None:
    """Return why a key cannot be priced in a run with these values by dotted key, or None if it can."""
    if is_number(found.get(key)):
        return None
    if key in found:
        return f"fitness.price.{key}: {shown(found[key])} is not a number; price a size, e.g. nets.latent"
    numbers = [name for name, value in found.items() if is_number(value)]
    return f"fitness.price.{key}: no such key in the run{did_you_mean(key, numbers)}; price a size, e.g. nets.latent"


def _nested(values: Mapping[str, Value]) -> dict[str, Any]:
    """Turn dotted keys into mappings of mappings.

    Raises:
        ConfigError: a key lies in another, which has a value of its own.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        below = found
        for part in path:
            below = below.setdefault(part, {})
            if not isinstance(below, dict):
                raise ConfigError(f"{key} lies in a key that is set as well, to {below!r}; leave out one of the two")
        if last in below:
            raise ConfigError(f"{key} is set, and so is a key in it; leave out one of the two")
        below[last] = value
    return found


def find_metric(name: str, available: Iterable[str]) -> str:
    """Return the scalar that ``name`` means: the one of that name, or the only one ``name/…``, as ``kd/<extractor>``.

    Raises:
        ConfigError: none or several; lists what there is.
    """
    known = sorted(available)
    found = [one for one in known if one == name] or [one for one in known if one.startswith(f"{name}/")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"fitness.metric={name} means {' or '.join(found)}; write which")
    hint = did_you_mean(name, known)
    raise ConfigError(f"fitness.metric={name} is not measured{hint}; there are {', '.join(known) or 'none'}")


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"search {path} does not exist; give a YAML file or a name in {FOLDER}/")
        return path
    known = {file.stem: file for file in sorted(FOLDER.glob("*.yaml"))}
    if str(source) not in known:
        there = f"it has {', '.join(known)}" if known else "there is none in the current directory"
        hint = did_you_mean(str(source), known)
        raise ConfigError(f"no search '{source}' in {FOLDER}/{hint}: {there}; give one of these, or a .yaml file")
    return known[str(source)]


def _read_run(run: object, folder: Path) -> RunConfig:
    if isinstance(run, Mapping):
        return build_config(run)
    if not isinstance(run, str):
        raise ConfigError(f"run={run!r}: must be a preset's name or a YAML file, e.g. run: vae")
    return read_config(folder / run if run.endswith((".yaml", ".yml")) else run)


def _with_mappings(values: dict[str, Any]) -> dict[str, Any]:
    """Return a search with ``set``, dotted, and ``space`` in it."""
    for place in ("set", "space"):
        if not isinstance(found := values.get(place, {}), Mapping):
            raise ConfigError(f"{place}={found!r}: must be a mapping of the run's keys, e.g. nets.latent")
    return {**values, "set": flat(values.get("set", {})), "space": values.get("space", {})}


def _overridden(values: dict[str, Any], override: str) -> dict[str, Any]:
    """Lay one override over a search whose keys of the run are dotted already."""
    top = parse_override(override)
    section, _, key = override.partition("=")[0].partition(".")
    if section == "run" and str(top["run"]).endswith((".yaml", ".yml")):
        return {**values, "run": str(Path(top["run"]).resolve())}  # of the current directory, not of the search's
    if section in ("run", "set") and key:
        return {**values, "set": {**values["set"], **flat(top[section])}}
    if section == "space" and key:
        return {**values, "space": _other_dimension(values["space"], key, _at(top, f"space.{key}"))}
    if section == "fitness" and key.startswith("price."):
        top = {"fitness": {"price": {key.removeprefix("price."): _at(top, f"fitness.{key}")}}}
    return merge(values, top)


def _other_dimension(space: Mapping[str, Any], key: str, value: object) -> dict[str, Any]:
    place, _, last = key.rpartition(".")
    if place in space or last in KINDS or last in MOVES:
        key, value = place, {last: value}
    if value is None:
        if key not in space:
            raise ConfigError(f"space.{key}=null: the space has no such key{did_you_mean(key, space)}")
        return {name: dimension for name, dimension in space.items() if name != key}
    below = space.get(key)
    if (
        isinstance(below, Mapping)
        and isinstance(value, Mapping)
        and not any(kind in value for kind in KINDS if kind not in below)
    ):
        value = {**below, **value}
    return {**space, key: value}


def _at(values: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        values = values[part]
    return values
