"""One thing that the doctor looked at."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

GIB = 1 << 30

Tell = Callable[[str, float, float | None], None]
"""Told what is being looked at, how far that is, and of how much (None: nobody knows)."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: it is.
        found: what there is, in words.
        good: whether one can train with it.
        remedy: what to do where that is not so.
        facts: the same for programs; seconds, bytes and counts.
    """

    what: str
    found: str
    good: bool = True
    remedy: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
