"""What a member is told to do. Each order says where it leads, so that it can be carried out twice without harm."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DIVERGED_SCORE = -1e30
"""Of a member that has diverged: worse than any number. Tune's own files could not hold an infinity."""


@dataclass(frozen=True)
class Train:
    """Train to the first clock at or past ``until``; at the end of ``generation``."""

    until: int
    generation: int


@dataclass(frozen=True)
class Become:
    """Take the donor's state of a sample, go on with other hyperparameters, and stay at one's own clock.

    Attributes:
        seq: number of the order, ascending within a search.
        samples: the member's own clock.
        donor: whose state.
        donor_samples: which state of it.
        values: of the searched keys.
        decided: when, in seconds since 1970.
    """

    seq: int
    samples: int
    donor: int
    donor_samples: int
    values: Mapping[str, Any]
    decided: float


@dataclass(frozen=True)
class Leave:
    """Save what there is and end."""


Order = Train | Become | Leave
