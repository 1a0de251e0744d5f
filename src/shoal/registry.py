"""A section whose ``name`` says which class reads the rest of it."""

from collections.abc import Mapping
from typing import TypeVar

from shoal.errors import ConfigError, did_you_mean
from shoal.strict import Strict, parse

Named = TypeVar("Named", bound=Strict)


def choose(known: Mapping[str, type[Named]], values: object, *, at: str) -> Named:
    """Validate a section by the class registered under its ``name``.

    Raises:
        ConfigError: no name, an unknown one, or a bad key or value.
    """
    name = values.get("name") if isinstance(values, Mapping) else None
    if not isinstance(name, str):
        raise ConfigError(f"{at}.name is missing; set {at}.name to one of {', '.join(sorted(known))}")
    if name not in known:
        raise ConfigError(f"unknown {at}.name={name}{did_you_mean(name, known)}; known: {', '.join(sorted(known))}")
    return parse(known[name], values, at=at)
