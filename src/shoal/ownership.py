"""Who writes a run's files: of all processes that have claimed it, the one that did so last.

A lock cannot say so: its holder may be cut off, stopped, or on another node, and wake up later. So every incarnation
of a run's workers claims the next epoch before it looks for a checkpoint, and writes under names that nobody else uses;
which of them count is a matter of arithmetic (`shoal.checkpoint_names`). An older writer looks whether it still owns
the run, and leaves if not; that nothing newer is lost does not rest on that look.
"""

import errno
import json
import os
import secrets
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from shoal.checkpoint_names import OWNERS, Claim, Name, claims_among
from shoal.errors import FencedError
from shoal.files import write_text
from shoal.run_files import CONFIG
from shoal.storage.location import Location


@dataclass(frozen=True)
class Hold:
    """An incarnation's hold on a run.

    On a local path, trouble with the storage is raised as `OSError`; at a URI, as `StorageError`.

    Attributes:
        folder: of the run's checkpoints, where it lies among the claims.
        claim: the incarnation's own.
    """

    folder: Location
    claim: Claim

    @property
    def epoch(self) -> int:
        """Greater than that of every incarnation before."""
        return self.claim.epoch

    @classmethod
    def take(cls, folder: Location, beside: Iterable[str] = ()) -> "Hold":
        """Claim a run; from then on every earlier claimant has lost it.

        Args:
            folder: of its checkpoints.
            beside: names of further checkpoints of it, which lie elsewhere.
        """
        token = secrets.token_hex(8)
        written = [name.epoch for text in [*_names(folder), *beside] if (name := Name.parse(text))]
        epoch = max([*written, *(claim.epoch for claim in claims_on(folder))], default=0) + 1
        while True:
            hold = cls(folder, Claim(epoch, token))
            hold._write()
            # What was written is listed: of two that take the same epoch at once, at least one sees both, and moves on.
            claims = claims_on(folder)
            rivals = sorted({claim.token for claim in claims if claim.epoch == epoch} | {token})
            if rivals == [token]:
                return hold
            (folder / OWNERS / str(hold.claim)).delete()
            epoch = max(claim.epoch for claim in claims) + 1 + rivals.index(token)

    def going_on_from(self, samples: int) -> "Hold":
        """Say from which clock the run goes on: what earlier incarnations write at a later one counts no longer.

        Raises:
            FencedError: the run was claimed by another process meanwhile.
        """
        self.refuse_lost()
        hold = replace(self, claim=replace(self.claim, samples=samples))
        hold._write()
        for claim in [self.claim, *claims_on(self.folder)]:
            said_again = claim.samples is None or claim.samples >= samples
            if claim == self.claim or (claim.epoch < self.epoch and said_again):
                (self.folder / OWNERS / str(claim)).delete()
        return hold

    def in_copy(self, folder: Location) -> "Hold":
        """Make the same claim where the run's copy on this node is written."""
        hold = replace(self, folder=folder)
        hold._write()
        return hold

    def refuse_lost(self) -> None:
        """Go on only while nobody else has claimed the run.

        Raises:
            FencedError: another process has.
        """
        claims = claims_on(self.folder)
        newest = max(claims, default=self.claim, key=lambda claim: claim.epoch)
        if newest.epoch > self.epoch:
            raise FencedError(
                f"{self.folder.parent} is trained by another process{self._who(newest)}; this one leaves it alone"
            )
        if self.claim not in claims:
            path = self.folder.local
            if path is not None and not (path.parent / CONFIG).is_file():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
            self._write()  # the folder of the checkpoints was removed

    def _write(self) -> None:
        facts = {"time": time.time(), "host": socket.gethostname(), "pid": os.getpid()}
        file, text = self.folder / OWNERS / str(self.claim), json.dumps(facts)
        if (path := file.local) is not None:
            write_text(path, text)
        else:
            file.write_bytes(text.encode())

    def _who(self, newest: Claim) -> str:
        try:
            facts = json.loads((self.folder / OWNERS / str(newest)).read_bytes())
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts["time"]))
            return f" (pid {facts['pid']} on {facts['host']}, since {since})"
        except (ValueError, KeyError, TypeError):  # of the storage, or in the file: it is only to help
            return ""


def claims_on(folder: Location) -> list[Claim]:
    """Return the claims beside the checkpoints of a folder."""
    return claims_among(_names(folder / OWNERS))


def _names(folder: Location) -> list[str]:
    """Return the names in a folder; none if it does not exist."""
    path = folder.local
    if path is None:
        return [entry.name for entry in folder.list()]
    try:
        return [entry.name for entry in path.iterdir()]
    except FileNotFoundError:
        return []
