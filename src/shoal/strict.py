"""Frozen, strict settings: an unknown key is an error that names its nearest neighbour; nothing is repaired."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo, field_validator

from shoal.errors import ConfigError, did_you_mean


class Strict(BaseModel):
    """Base of every section of a configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and info.field_name is not None:
            kind = cls.model_fields[info.field_name].annotation
            if kind is not bool and bool not in get_args(kind):
                raise ValueError(f"{str(value).lower()} is a truth value, not what belongs here")
        return value


def whole_number(value: object) -> object:
    """Read ``3e6`` and ``3_000_000`` as the whole numbers that they are."""
    if isinstance(value, str):
        try:
            value = float(value.replace("_", ""))
        except ValueError:
            return value
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(whole_number)]
"""A whole number that may be written as ``3e6``."""

Section = TypeVar("Section", bound=Strict)


def parse(section: type[Section], values: object, *, at: str = "") -> Section:
    """Validate ``values`` (a mapping, as YAML gives it) into a section.

    ``at`` is the dotted place of the section in the whole configuration, for messages.

    Raises:
        ConfigError: names every bad key and value at once.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{at or 'the configuration'} is {values!r}; it must be a mapping of keys to values")
    try:
        return section.model_validate(values)
    except ValidationError as error:
        known = list(dotted_keys(section, at))
        raise ConfigError("\n".join(_explain(problem, section, known, at) for problem in error.errors())) from None


def dotted_keys(section: type[Strict], at: str = "") -> Iterator[str]:
    """Yield every key of a section as it is written on the command line, e.g. ``optim.lr``."""
    for name, field in section.model_fields.items():
        key = f"{at}.{name}" if at else name
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Strict) and inner.model_fields:
            yield from dotted_keys(inner, key)
        else:
            yield key


def _fields_at(section: Any, loc: list[Any]) -> list[str]:
    """Return the fields of the section that a place lies in, through mappings of names to sections too."""
    while loc:
        fields = section.model_fields if isinstance(section, type) and issubclass(section, Strict) else {}
        if loc[0] in fields:
            section, loc = fields[loc[0]].annotation, loc[1:]
        else:
            section, loc = next(reversed(get_args(section)), None), loc[1:]
    return list(section.model_fields) if isinstance(section, type) and issubclass(section, Strict) else []


def _explain(problem: Any, section: type[Strict], known: list[str], at: str) -> str:
    key = ".".join(str(part) for part in ([at] if at else []) + list(problem["loc"]))
    match problem["type"]:
        case "extra_forbidden":
            place = key.rpartition(".")[0]
            siblings = [f"{place}.{name}" if place else name for name in _fields_at(section, list(problem["loc"])[:-1])]
            hint = did_you_mean(key, siblings) or did_you_mean(key, known) or f"; known here: {', '.join(siblings)}"
            return f"unknown key {key}{hint}"
        case "missing":
            return f"{key} is missing; set {key}=…"
        case "value_error":
            return f"{key + ': ' if key else ''}{problem['ctx']['error']}"
        case "model_type" | "dict_type":
            inside = _fields_at(section, list(problem["loc"])) or _fields_at(section, [*problem["loc"], "NAME"])
            place = key if problem["type"] == "model_type" else f"{key}.NAME"
            example = next((name for name in inside if name != "name"), "KEY")
            return f"{key}={problem['input']!r}: must be a section of keys, e.g. {place}.{example}=…"
        case "tuple_type":
            given = problem["input"] if isinstance(problem["input"], str | int | float) else "…"
            return f"{key}={problem['input']!r}: must be a list, e.g. {key}=[{given}]"
        case _:
            message = problem["msg"].removeprefix("Input ")
            return f"{key}={problem['input']!r}: {message[:1].lower()}{message[1:]}"
