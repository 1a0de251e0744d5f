"""The kinds of dimensions that a search may have: three of ranges, two of lists."""

import json
import math
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from random import Random
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, model_validator

from shoal.errors import ConfigError, did_you_mean
from shoal.strict import Count, parse
from shoal_ray.population.dimension import MOVES, Dimension, Value, is_number, shown

INSIDE = 0.381966
"""A quantile at which hardly a range has a round number: shows a key that takes whole numbers only."""

EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
"""Numbers as people write them that YAML 1.1 reads as words."""


def _no_truth_value(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is a truth value, not a number")
    return value


def _whole(value: float) -> float:
    return int(value) if value.is_integer() else value


def _plain(value: object) -> Value:
    """Return a scalar, or a list of them, with numbers as numbers."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str) and EXPONENT.fullmatch(value):
        value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    if not (value is None or isinstance(value, bool | int | float | str)):
        raise ValueError(f"{value!r} is a {type(value).__name__}; a choice is of numbers, words or lists of them")
    return value


def _identity(value: Value) -> str:
    """Return the same text for equal values: 1 and 1.0 are, 1 and true are not, a tuple is its list."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_identity, value))}]"
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)


Number = Annotated[float, BeforeValidator(_no_truth_value)]
Rung = Annotated[float, BeforeValidator(_no_truth_value), AfterValidator(_whole)]
WholeNumber = Annotated[Count, BeforeValidator(_no_truth_value)]
Listed = Annotated[Any, BeforeValidator(_plain)]


class _Range(Dimension):
    """All numbers between two, both included."""

    @property
    @abstractmethod
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest value."""

    def nearest(self, value: Value) -> Value:
        low, high = self.ends
        return min(max(value, low), high) if is_number(value) else None

    def contains(self, value: Value) -> bool:
        low, high = self.ends
        return is_number(value) and bool(low <= value <= high)

    def values_to_check(self) -> list[Value]:
        return [self.ends[0], self.quantile(INSIDE), self.ends[1]]

    def describe(self) -> str:
        low, high = self.ends
        return f"{self.kind.replace('_', '-')} from {shown(low)} to {shown(high)}"

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        low, high = self.ends
        if not low < high:
            given = f"{self.kind}=[{shown(low)}, {shown(high)}]"
            raise ValueError(f"{given} holds no range; write the lower end first, and a higher one after it")
        if not math.isfinite(high - low):
            raise ValueError(f"{self.kind}=[{shown(low)}, {shown(high)}] is too wide to draw from; narrow it")
        return self

    def _held(self, value: float, operation: str) -> tuple[Value, str]:
        held = self.nearest(value)
        return held, operation if held == value else f"{operation}, held at {shown(held)}"


class LogUniform(_Range):
    """Positive numbers whose logarithm is uniform: ``{log_uniform: [1.0e-4, 1.0e-2]}``.

    A move multiplies or divides by exactly ``perturb`` (default 1.25), as Jaderberg et al. 2017 (arXiv:1711.09846,
    section 4.1.1) do by 1.2 and 0.8, and stays in the range.
    """

    kind = "log_uniform"
    bounds: tuple[Number, Number] = Field(alias="log_uniform")
    perturb: float = Field(1.25, gt=1)

    @property
    def ends(self) -> tuple[float, float]:
        return self.bounds

    @model_validator(mode="after")
    def _is_positive(self) -> Self:
        if self.bounds[0] <= 0:
            raise ValueError(f"log_uniform begins at {shown(self.bounds[0])}, which has no logarithm; begin above 0")
        return self

    def quantile(self, u: float) -> float:
        low, high = self.bounds
        return min(max(math.exp((1 - u) * math.log(low) + u * math.log(high)), low), high)

    def rule(self) -> str:
        return self._and_afresh(f"x or / {shown(self.perturb)}")

    def _move(self, value: Value, rng: Random) -> tuple[Value, str]:
        if rng.random() < 0.5:
            return self._held(value * self.perturb, f"x {shown(self.perturb)}")
        return self._held(value / self.perturb, f"/ {shown(self.perturb)}")


class Uniform(_Range):
    """Numbers that are all as likely: ``{uniform: [0.5, 4.0]}``.

    A move adds or takes away exactly ``perturb`` (default 0.1) times the width of the range, and stays in it.
    """

    kind = "uniform"
    bounds: tuple[Number, Number] = Field(alias="uniform")
    perturb: float = Field(0.1, gt=0, le=1)

    @property
    def ends(self) -> tuple[float, float]:
        return self.bounds

    def quantile(self, u: float) -> float:
        low, high = self.bounds
        return min(max((1 - u) * low + u * high, low), high)

    def rule(self) -> str:
        return self._and_afresh(f"+ or - {shown(self._step)}")

    @property
    def _step(self) -> float:
        return self.perturb * (self.bounds[1] - self.bounds[0])

    def _move(self, value: Value, rng: Random) -> tuple[Value, str]:
        if rng.random() < 0.5:
            return self._held(value + self._step, f"+ {shown(self._step)}")
        return self._held(value - self._step, f"- {shown(self._step)}")


class Int(_Range):
    """Whole numbers that are all as likely: ``{int: [1, 8]}``, both ends included.

    A move adds or takes away 1 to ``perturb`` (default 1), and stays in the range.
    """

    kind = "int"
    bounds: tuple[WholeNumber, WholeNumber] = Field(alias="int")
    perturb: PositiveInt = 1

    @property
    def ends(self) -> tuple[int, int]:
        return self.bounds

    def quantile(self, u: float) -> int:
        low, high = self.bounds
        return min(low + math.floor(u * (high - low + 1)), high)

    def nearest(self, value: Value) -> Value:
        held = super().nearest(value)
        return None if held is None else round(held)

    def contains(self, value: Value) -> bool:
        return super().contains(value) and value == round(value)

    def values_to_check(self) -> list[Value]:
        return [*self.bounds]

    def describe(self) -> str:
        return f"whole numbers from {self.bounds[0]} to {self.bounds[1]}"

    def rule(self) -> str:
        return self._and_afresh(f"+ or - {'1' if self.perturb == 1 else f'1 to {self.perturb}'}")

    def _move(self, value: Value, rng: Random) -> tuple[Value, str]:
        step = rng.randint(1, self.perturb)
        if rng.random() < 0.5:
            return self._held(value + step, f"+ {step}")
        return self._held(value - step, f"- {step}")


class _List(Dimension):
    """The values that are written down, all as likely."""

    @property
    @abstractmethod
    def listed(self) -> Sequence[Value]:
        """The values, in the order of the file."""

    def quantile(self, u: float) -> Value:
        return self.listed[min(math.floor(u * len(self.listed)), len(self.listed) - 1)]

    def contains(self, value: Value) -> bool:
        return _identity(value) in map(_identity, self.listed)

    def values_to_check(self) -> list[Value]:
        return [*self.listed]

    @model_validator(mode="after")
    def _leaves_a_choice(self) -> Self:
        if len(self.listed) < 2:
            given = f"{self.kind}={shown(self.listed)}"
            raise ValueError(f"{given} leaves nothing to search; list two values or more, or `set` the one")
        return self


class Choice(_List):
    """Values without an order: ``{choice: [constant, cosine]}``.

    The only move is a fresh draw, with probability ``resample`` (default 0.25); a value not listed is always replaced.
    """

    kind = "choice"
    values: tuple[Listed, ...] = Field(alias="choice")
    resample: float = Field(0.25, ge=0, le=1)

    @property
    def listed(self) -> Sequence[Value]:
        return self.values

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len({_identity(value) for value in self.values}) < len(self.values):
            raise ValueError(f"choice={shown(self.values)} lists a value twice; list each once")
        return self

    def nearest(self, value: Value) -> Value:
        return value

    def describe(self) -> str:
        return f"one of {', '.join(map(shown, self.values))}"

    def rule(self) -> str:
        return f"{self.resample:.0%} afresh" if self.resample else "stays"

    def _move(self, value: Value, rng: Random) -> tuple[Value, str]:
        return value, "stays"


class Ladder(_List):
    """Sizes in ascending order: ``{ladder: [4, 8, 16, 32, 64]}``.

    A move goes one step up, one down, or none, all as likely; at an end, a step that would leave stays.
    """

    kind = "ladder"
    rungs: tuple[Rung, ...] = Field(alias="ladder")

    @property
    def listed(self) -> Sequence[Value]:
        return self.rungs

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if any(above <= below for below, above in zip(self.rungs, self.rungs[1:], strict=False)):
            raise ValueError(f"ladder={shown(self.rungs)} does not ascend; write each size once, the smallest first")
        return self

    def nearest(self, value: Value) -> Value:
        return min(self.rungs, key=lambda rung: abs(rung - value)) if is_number(value) else None

    def describe(self) -> str:
        return f"sizes {', '.join(map(shown, self.rungs))}"

    def rule(self) -> str:
        return self._and_afresh("one step up, down, or none")

    def _move(self, value: Value, rng: Random) -> tuple[Value, str]:
        at = self.rungs.index(value)
        to = min(max(at + rng.choice((-1, 0, 1)), 0), len(self.rungs) - 1)
        return self.rungs[to], {-1: "one step down", 0: "stays", 1: "one step up"}[to - at]


KINDS: dict[str, type[Dimension]] = {kind.kind: kind for kind in (LogUniform, Uniform, Int, Choice, Ladder)}


def read_dimension(key: str, values: object) -> Dimension:
    """Read what one key may become, as YAML gives it: ``{log_uniform: [1.0e-4, 1.0e-2], perturb: 1.25}``.

    Raises:
        ConfigError: names ``space.KEY`` and what is wrong: no kind, two, an unknown one, or bad values.
    """
    at = f"space.{key}"
    if not isinstance(values, Mapping):
        raise ConfigError(f"{at}={values!r}: must be one of {', '.join(KINDS)}, e.g. {{choice: [1, 2]}}")
    kinds = [str(name) for name in values if name in KINDS]
    if not kinds:
        unknown = next((f"unknown kind {name}" for name in values if name not in MOVES), "no kind")
        near = did_you_mean(unknown.removeprefix("unknown kind "), KINDS)
        raise ConfigError(f"{at}: {unknown}{near}; known: {', '.join(KINDS)}")
    if len(kinds) > 1:
        raise ConfigError(f"{at} is of two kinds, {' and '.join(kinds)}; keep one")
    kind = KINDS[kinds[0]]
    known = [kind.kind, *(name for name in MOVES if name in kind.model_fields)]
    if unknown_keys := [str(name) for name in values if name not in known]:
        raise ConfigError(
            "\n".join(
                f"unknown key {at}.{name}{did_you_mean(name, known)}; a {kind.kind} has {', '.join(known)}"
                for name in unknown_keys
            )
        )
    return parse(kind, values, at=at)
