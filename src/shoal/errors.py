"""What a user can get wrong. Every message says the value, the rule and the remedy.

These are the only exceptions the command line turns into one line and exit code 2; anything else is our own bug and
keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class ShoalError(ValueError):
    """A mistake that the user can mend: the message names the value, the rule and the remedy."""


class ConfigError(ShoalError):
    """A configuration key, value or preset that cannot be used."""


class DataError(ShoalError):
    """A data set that is missing, damaged, or of the wrong shape."""


class CheckpointError(ShoalError):
    """A checkpoint that cannot be loaded."""


class RunError(ShoalError):
    """A run directory that cannot be created, opened or resumed."""


class DivergenceError(RunError):
    """A run whose losses, weights or images are no longer numbers."""


class ClusterError(ShoalError):
    """A cluster that cannot be reached or is too small."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest known name, or an empty string when nothing is near."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
