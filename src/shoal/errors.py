"""What a user can get wrong. Every message says the value, the rule and the remedy.

These are the only exceptions the command line turns into one line and exit code 2; anything else is our own bug and
keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from functools import partial

USER_ERROR = 2
"""The exit code of a command that refuses in its own words."""


class ShoalError(ValueError):
    """A mistake that the user can mend: the message names the value, the rule and the remedy."""


class ConfigError(ShoalError):
    """A configuration key, value or preset that cannot be used."""


class DataError(ShoalError):
    """A data set that is missing, damaged, or of the wrong shape."""


class DamagedBlockError(DataError):
    """A block of rows that is not what was imported, on a second look too, or holds a file that is no image.

    Attributes:
        shard: the name of the file that it lies in.
        block: its index in the data set, 0 for the first block of the first shard.
        first_row: the global id of its first row.
        rows: how many rows it has.
    """

    def __init__(self, message: str, *, shard: str, block: int, first_row: int, rows: int) -> None:
        super().__init__(message)
        self.shard = shard
        self.block = block
        self.first_row = first_row
        self.rows = rows

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with all attributes: an exception would else be made anew of its message alone."""
        again = partial(type(self), shard=self.shard, block=self.block, first_row=self.first_row, rows=self.rows)
        return (again, (str(self),))


class CheckpointError(ShoalError):
    """A checkpoint that cannot be loaded."""


class RunError(ShoalError):
    """A run directory that cannot be created, opened or resumed."""


class FencedError(ShoalError):
    """A run that another process goes on with: this one has no right to write into it any more."""


class StorageError(ShoalError):
    """A file or object that cannot be read or written: a full disk, a refused login, a store that does not answer."""


class MissingError(StorageError):
    """A file, object or bucket that is not there."""


class DivergenceError(RunError):
    """A run whose losses, weights or images are no longer numbers."""


class ClusterError(ShoalError):
    """A cluster that cannot be reached or is too small."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest known name, or an empty string when nothing is near."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
