"""Where the configurations of several runs differ."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from shoal.config import build_config, flat
from shoal.errors import ConfigError, RunError
from shoal.run import CONFIG, Run
from shoal.run_files import Place, local_path

ABSENT = object()
"""In place of the value of a key that a run does not have."""


def names_of(places: Sequence[Place]) -> list[str]:
    """Return the shortest ends of the places that tell the runs apart.

    Raises:
        RunError: fewer than two runs, or one of them twice.
    """
    parts = [
        tuple(str(place).split("/")) if (path := local_path(place)) is None else path.resolve().parts
        for place in places
    ]
    if len(parts) < 2:
        raise RunError("nothing to compare: one run given; give two at least, or use `shoal eval RUN`")
    twice = next((place for place, own in zip(places, parts, strict=True) if parts.count(own) > 1), None)
    if twice is not None:
        raise RunError(f"{twice} is given more than once; give each run once")
    length = 1
    while len({own[-length:] for own in parts}) < len(parts):
        length += 1
    return ["/".join(own[-length:]) for own in parts]


def read_values(run: Path) -> dict[str, Any]:
    """Return a run's configuration as plain values, with what it does not say as this Shoal reads it.

    That of an objective from a plug-in stays as it is written: no plug-in is loaded for it.

    Raises:
        RunError: no run, or a damaged configuration.
    """
    file = run / CONFIG
    if not file.is_file():
        raise RunError(f"{run} is not a run directory (no {CONFIG} in it); give the --out of a training run")
    try:
        values = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, ValueError) as error:
        raise RunError(f"{file} is damaged ({error}); leave this run out") from None
    if not isinstance(values, dict):
        raise RunError(f"{file} is damaged (no mapping of keys to values); leave this run out")
    try:
        return build_config(values).model_dump(mode="json")
    except ConfigError:
        return values


def read_flags(run: Path) -> dict[str, Any]:
    """Return with which flags a run was trained, as far as it notes them: those say where, keys say what."""
    try:
        facts = Run.facts_of(run)
    except RunError:
        return {}
    return {f"--{name}": facts[name] for name in ("data", "workers") if name in facts}


def differences(configurations: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Return, by dotted key, the values that are not the same in all; ``ABSENT`` where one lacks the key."""
    all_flat = [flat(values) for values in configurations]
    keys = list(dict.fromkeys(key for values in all_flat for key in values))
    sections = list(dict.fromkeys(map(_section, keys)))
    keys.sort(key=lambda key: sections.index(_section(key)))
    rows = {key: tuple(values.get(key, ABSENT) for values in all_flat) for key in keys}
    return {key: row for key, row in rows.items() if any(value is not row[0] and value != row[0] for value in row)}


def _section(key: str) -> str:
    return key.partition(".")[0]
