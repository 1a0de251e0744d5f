"""What one key of a run may become in a search, and how a member of a population moves there."""

import json
import math
from abc import abstractmethod
from random import Random
from typing import Any, ClassVar

from pydantic import Field

from shoal.strict import Strict

Value = Any
"""What a key may hold: a number, a word, a truth value, nothing, or a list of these."""

MOVES = ("perturb", "resample")
"""What a dimension says beside its values."""


def is_number(value: object) -> bool:
    """Tell whether a value is a number that can be counted with: no truth value, and not NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def shown(value: Value) -> str:
    """Write a value as a table shows it: six digits of what is no whole number."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value).strip('"')


class Dimension(Strict):
    """What one key may become.

    ``resample`` is the probability, in [0, 1], that a move is a fresh draw from the whole of it.
    """

    kind: ClassVar[str]
    resample: float = Field(0.0, ge=0, le=1)

    @abstractmethod
    def quantile(self, u: float) -> Value:
        """Return the value below which a share ``u``, in [0, 1), of all draws lies."""

    @abstractmethod
    def nearest(self, value: Value) -> Value:
        """Return the value of the space that is nearest, or None if none can be said to be."""

    @abstractmethod
    def contains(self, value: Value) -> bool:
        """Tell whether a value belongs to the space."""

    @abstractmethod
    def values_to_check(self) -> list[Value]:
        """Return the values that a run must take before a search may start: every listed one, or the extremes."""

    @abstractmethod
    def describe(self) -> str:
        """Write what the values are, for a table."""

    @abstractmethod
    def rule(self) -> str:
        """Write how a member moves, for a table."""

    @abstractmethod
    def _move(self, value: Value, rng: Random) -> tuple[Value, str]:
        """Return a neighbour of a value of the space, and what was done."""

    def explore(self, value: Value, rng: Random) -> tuple[Value, str]:
        """Return a value of the space near another, and what was done in words.

        A value from outside is first taken to the nearest inside; where there is none, a fresh one is drawn.
        """
        afresh = rng.random() < self.resample
        if afresh or not self.contains(start := self.nearest(value)):
            return self.quantile(rng.random()), "resampled"
        return self._move(start, rng)

    def plain(self) -> dict[str, Any]:
        """Return what ``read_dimension`` takes, defaults too."""
        values = self.model_dump(by_alias=True)
        return {self.kind: list(values.pop(self.kind)), **{name: values[name] for name in MOVES if name in values}}

    def _and_afresh(self, rule: str) -> str:
        return f"{rule}; {self.resample:.0%} afresh" if self.resample else rule
