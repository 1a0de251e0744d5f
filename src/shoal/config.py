"""The configuration of a run: what is learned, never where. Presets and YAML files with dotted overrides on top."""

import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt

from shoal.data.balance import Balance, valid_balance
from shoal.errors import ConfigError, did_you_mean
from shoal.nets import AnyNetConfig, parse_net
from shoal.objectives import AnyObjectiveConfig, parse_objective
from shoal.pixels import PixelRange
from shoal.quality.better import BETTER, better
from shoal.schedule import OptimConfig
from shoal.strict import Count, Strict, dotted_keys, parse, whole_number

RESUMABLE = ("duration_samples", "optim.lr", "optim.phases.", "report.", "checkpoint.")
"""Keys (or, ending in a dot, sections) that a resumed run may change. Any other would make it a different run."""

CHANGEABLE = ("optim.", "objective.", "nets.latent", "ema.half_life_samples")
"""Keys (or sections) that may change while a model trains; whether its networks allow it, their shapes tell."""


class DataConfig(Strict):
    """Which images, in which order and range."""

    split: str = Field("train", description="trained on; a part of one by rows or hundredths: train[:90%]")
    held_out: str | None = Field(
        None, description="split for pictures and measures while it trains. None: val, else test, else the same"
    )
    range: PixelRange = Field("unit", description="of the pixels in the nets: unit [0, 1], symmetric [-1, 1]")
    window_blocks: PositiveInt = Field(16, description="blocks whose rows are shuffled together")
    balance: Annotated[Balance, BeforeValidator(valid_balance)] = Field(
        "none", description="how often each class comes: none, uniform, sqrt (in between), or {CLASS: SHARE, ...}"
    )


class EmaConfig(Strict):
    """An exponential moving average of the weights, used wherever the model is shown or measured."""

    half_life_samples: Count = Field(0, ge=0, description="0: no average is kept")


class ReportConfig(Strict):
    """How often the run speaks."""

    every_samples: Count = Field(10_000, gt=0)
    images_every_samples: Count = Field(60_000, ge=0, description="0: no pictures")
    quality_every_samples: Count = Field(0, ge=0, description="0: quality is not measured during training")
    quality_images: Annotated[int, Field(gt=0)] | None = Field(
        None, description="images to measure it on. None: 2,000, or as many as there are"
    )


def _with_a_direction(metric: str) -> str:
    """Refuse a measure of which nobody can say whether a large or a small one is good."""
    if better(metric) is None:
        raise ValueError(f"no measure '{metric}' says how good a model is{did_you_mean(metric, BETTER)}")
    return metric


class CheckpointConfig(Strict):
    """How often the run saves itself; it always does so at its end and when it is stopped."""

    every_samples: Count = Field(60_000, ge=0, description="0: only at the end")
    keep: PositiveInt = Field(3, description="of the newest ones")
    keep_best: Annotated[str, AfterValidator(_with_a_direction)] | None = Field(
        None, description="a measure, e.g. quality/mse: the best one by it is saved and kept too"
    )


def _absolute(path: Path) -> Path:
    """Make a path say the same to a worker elsewhere and to a later resume."""
    try:
        return path.expanduser().resolve()
    except RuntimeError as error:  # no such user, or links in a circle
        raise ValueError(f"{path}: {error}; check the path") from None


def _one_per_sample(values: object) -> object:
    """Join what is said twice of a sample, as ``60`` by a file and as ``"60"`` by an override; the later one wins."""
    if not isinstance(values, Mapping) or not all(isinstance(change, Mapping) for change in values.values()):
        return values
    joined: dict[Any, dict[str, Any]] = {}
    for at, change in values.items():
        joined.setdefault(whole_number(at), {}).update(flat(change))
    return joined


class RunConfig(Strict):
    """Everything that decides what is learned. Durations count samples: images seen by all workers together."""

    objective: AnyObjectiveConfig
    nets: AnyNetConfig
    batch: Count = Field(256, gt=0, description="images in a global batch, shared out over the workers")
    duration_samples: Count = Field(600_000, gt=0)
    seed: int = Field(0, ge=0, lt=2**63, description="of every random draw")
    init_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        None, description="of the first weights, where they are to differ in runs that see the same. None: seed"
    )
    init_from: Annotated[Path, AfterValidator(_absolute)] | None = Field(
        None, description="another run, from whose newest checkpoint the weights start"
    )
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    ema: EmaConfig = EmaConfig()
    report: ReportConfig = ReportConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    changes: Annotated[dict[Annotated[Count, Field(gt=0)], dict[str, Any]], BeforeValidator(_one_per_sample)] = Field(
        {}, description="keys that take other values from a sample on: {60000: {optim.lr: 1e-4, nets.latent: 32}}"
    )

    def at(self, samples: int) -> "RunConfig":
        """Return the configuration of a step that starts at a sample, with the changes up to there made."""
        due = [values for at, values in sorted(self.changes.items()) if at <= samples]
        if not due:
            return self
        values = self.model_dump(mode="json")
        for change in due:
            for key, value in change.items():
                values = merge(values, nested(key, value))
        return _parsed(values)

    def to_yaml(self) -> str:
        """Write every key, defaults too, so that the file alone says what was run."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def build_config(values: Mapping[str, Any]) -> RunConfig:
    """Validate a whole configuration.

    Raises:
        ConfigError: names every bad key and value, with the nearest known key.
    """
    config = _parsed(values)
    for at, change in sorted(config.changes.items()):
        for key in change:
            if not _is_among(key, CHANGEABLE):
                raise ConfigError(
                    f"changes at sample {at}: {key} cannot change while a model trains; only nets.latent, optim.*,"
                    " objective.* and ema.half_life_samples can"
                )
        try:
            config.at(at)
        except ConfigError as error:
            raise ConfigError(f"changes at sample {at}: {error}") from None
    return config


def _parsed(values: Mapping[str, Any]) -> RunConfig:
    sections = dict(values)
    unknown = [key for key in sections if key not in RunConfig.model_fields]
    if unknown:
        known = list(dotted_keys(RunConfig))
        raise ConfigError("\n".join(f"unknown key {key}{did_you_mean(str(key), known)}" for key in unknown))
    sections["objective"] = parse_objective(sections.get("objective", {}))
    sections["nets"] = parse_net(sections.get("nets", {}))
    config = parse(RunConfig, sections)
    _check_phases(config)
    return config


def _check_phases(config: RunConfig) -> None:
    from shoal.objectives import OBJECTIVES

    phases = [phase.name for phase in OBJECTIVES[config.objective.name].phases]
    for name in config.optim.phases:
        if name not in phases:
            raise ConfigError(
                f"unknown key optim.phases.{name}{did_you_mean(name, phases)}; objective"
                f" '{config.objective.name}' has the phases {', '.join(phases)}"
            )


def presets() -> dict[str, Path]:
    """Return the shipped configurations by name."""
    folder = Path(str(files("shoal") / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_config(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> RunConfig:
    """Read a preset's name or a YAML file, and apply ``key.sub=value`` overrides.

    Raises:
        ConfigError: no such preset or file, malformed YAML, or a bad key or value.
    """
    return build_config(_overridden(read_yaml(_find(source)), overrides))


def with_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return a configuration with ``key.sub=value`` overrides applied."""
    return build_config(_overridden(config.model_dump(mode="json"), overrides))


def _overridden(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    # Another name starts its section afresh, so names come first: no override of the new section is lost.
    parsed = [parse_override(override) for override in overrides]
    parsed.sort(key=lambda top: not any(isinstance(section, Mapping) and "name" in section for section in top.values()))
    for top in parsed:
        values = merge(values, top)
    return values


def changed_keys(old: RunConfig, new: RunConfig) -> list[str]:
    """Return the dotted keys whose values differ."""
    before, after = (flat(config.model_dump(mode="json")) for config in (old, new))
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def may_change(key: str) -> bool:
    """Tell whether a resumed run may change a dotted key."""
    return _is_among(key, RESUMABLE)


def _is_among(key: str, allowed: Sequence[str]) -> bool:
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in allowed)


def parse_override(text: str) -> dict[str, Any]:
    """Turn ``optim.lr=1e-3`` into nested mappings; the value is read as YAML.

    Raises:
        ConfigError: not of the form key=value.
    """
    key, equals, value = text.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override '{text}' is not of the form key=value, e.g. optim.lr=1e-3")
    try:
        parsed: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"override '{text}' has a value that is not YAML; quote it") from None
    return nested(key, parsed)


def nested(key: str, value: Any) -> dict[str, Any]:
    """Return ``{"optim": {"lr": value}}`` for ``optim.lr``."""
    found: Any = value
    for part in reversed(key.split(".")):
        found = {part: found}
    return dict(found)


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``top`` over ``base``, mapping by mapping. Another ``name`` in a section starts that section afresh."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            renamed = "name" in value and value["name"] != below.get("name")
            merged[key] = dict(value) if renamed and key in ("objective", "nets") else merge(below, value)
        else:
            merged[key] = value
    return merged


def _find(source: str | os.PathLike[str]) -> Path:
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"configuration file {path} does not exist; give a YAML file or a preset's name")
        return path
    known = presets()
    if str(source) not in known:
        raise ConfigError(
            f"unknown preset '{source}'{did_you_mean(str(source), known)}; known: {', '.join(known)}, or a .yaml file"
        )
    return known[str(source)]


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        ConfigError: it is not YAML, or holds something else.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, not a mapping of keys to values")
    return values


def flat(values: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Return nested mappings as one of dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{at}.{key}" if at else str(key)
        found |= flat(value, dotted) if isinstance(value, Mapping) else {dotted: value}
    return found
