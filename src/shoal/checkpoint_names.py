"""The names of checkpoints, and which of them count when several processes have written them one after another.

Every incarnation of a run's workers has an epoch: it claims the run, then says from which sample it goes on
(`shoal.ownership`). What an earlier epoch wrote at a later sample than that counts no longer, whenever it was written:
the run went another way. So whoever was cut off and wakes up later cannot put anything in front of what is newer.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

OWNERS = ".owners"
"""The folder of the claims, beside the checkpoints."""

_NAME = re.compile(r"([0-9]{12,})(?:-([0-9]+))?")
_CLAIM = re.compile(r"([0-9]{8,})-([0-9a-f]+)(?:-([0-9]{12,}))?\.json")


@dataclass(frozen=True, order=True)
class Name:
    """What a checkpoint's name says; of two, the newer one is the greater one.

    Attributes:
        samples: its clock.
        epoch: of its writer.
    """

    samples: int
    epoch: int = 1

    def __str__(self) -> str:
        """Return the name: those of the first epoch have no other part, as before there were epochs."""
        return f"{self.samples:012d}" + (f"-{self.epoch}" if self.epoch > 1 else "")

    @classmethod
    def parse(cls, text: str) -> "Name | None":
        """Return what a name says; None if it is no checkpoint's."""
        found = _NAME.fullmatch(text)
        if found is None:
            return None
        name = cls(int(found[1]), int(found[2] or 1))
        return name if str(name) == text else None

    @classmethod
    def of_temporary(cls, text: str) -> "Name | None":
        """Return what the name of an unfinished or deleted one says, such as ``.000000000600-2.0123abcd.tmp``."""
        hidden, _, rest = text.partition(".")
        name, _, ending = rest.partition(".")
        return None if hidden or not ending.endswith("tmp") else cls.parse(name)


@dataclass(frozen=True)
class Claim:
    """One incarnation's claim on a run.

    Attributes:
        epoch: greater than that of every claim before.
        token: tells it from another one of the same epoch.
        samples: the clock that it goes on from; None until that is chosen.
    """

    epoch: int
    token: str
    samples: int | None = None

    def __str__(self) -> str:
        """Return the name of its file. A claim whose clock is chosen has two files: one without, one with it."""
        return f"{self.epoch:08d}-{self.token}{'' if self.samples is None else f'-{self.samples:012d}'}.json"

    @classmethod
    def parse(cls, text: str) -> "Claim | None":
        """Return what the name of a file says; None if it is no claim's."""
        found = _CLAIM.fullmatch(text)
        return found and cls(int(found[1]), found[2], None if found[3] is None else int(found[3]))


def claims_among(names: Iterable[str]) -> list[Claim]:
    """Return the claims among the names of files in ``OWNERS``."""
    return [claim for claim in map(Claim.parse, names) if claim is not None]


def counts(name: Name, claims: Iterable[Claim]) -> bool:
    """Tell whether a checkpoint counts: no later incarnation has gone on from before it."""
    return all(claim.samples is None or claim.epoch <= name.epoch or name.samples <= claim.samples for claim in claims)


def newest_first(names: Iterable[str], claims: Iterable[Claim]) -> list[str]:
    """Return the names of those checkpoints that count."""
    claims = list(claims)
    found = {text: name for text in names if (name := Name.parse(text)) and counts(name, claims)}
    return sorted(found, key=found.__getitem__, reverse=True)
