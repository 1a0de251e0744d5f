"""A folder on an object store, and this node's copy of it, which is worked on."""

import secrets
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from shoal.errors import MissingError, StorageError
from shoal.storage.location import Location
from shoal.storage.locks import held
from shoal.storage.node import node_folder

PULLING = ".pull.lock"


@dataclass(frozen=True)
class Mirror:
    """A folder at a URI, where its truth lies, and a copy of some of its files on this node.

    Who writes and who only looks have a copy each: looking never touches what a process of this node is writing.
    Processes of a node share a copy; `alone` keeps them from filling it at once. The copies stay after their use: what
    never reached the URI is found there again.

    Attributes:
        home: the URI.
        path: the copy, below the `node_folder`. It may not exist yet.
        writes: whether it is the writers' copy.
    """

    home: Location
    path: Path
    writes: bool

    @classmethod
    def of(cls, home: Location, *, writes: bool) -> "Mirror":
        """Return the mirror of a folder on an object store; nothing is made or asked yet."""
        assert home.local is None
        key = sha256(home.uri.encode()).hexdigest()[:16]
        kind = "written" if writes else "read"
        return cls(home, node_folder() / "runs" / key / kind / home.name, writes)

    def alone(self) -> AbstractContextManager[None]:
        """Keep other processes of this node from pulling while the block lasts; wait for one that does."""
        return held(self.path.parent / PULLING)

    def pull(self, names: Iterable[str], *, keep_longer: bool = False) -> None:
        """Make files of the copy equal to those at the URI; one that is not there goes from the copy too.

        Args:
            names: of the files.
            keep_longer: leave those alone that only go on where the ones at the URI end.

        Raises:
            StorageError: the store refuses or does not answer.
        """
        for name in names:
            file = self.path / name
            try:
                content = (self.home / name).read_bytes()
            except MissingError:
                content = None
            here = file.read_bytes() if file.is_file() else None
            # A file that is the same is left alone: whoever follows it would read it from its beginning again.
            if here == content or (keep_longer and here is not None and here.startswith(content or b"")):
                continue
            if content is None:
                file.unlink(missing_ok=True)
            else:
                Location.parse(file).write_bytes(content)

    def push(self, names: Iterable[str]) -> None:
        """Copy those of the files that exist to the URI, one after the other.

        Raises:
            StorageError: the store refuses or does not answer.
        """
        for name in names:
            try:
                content = (self.path / name).read_bytes()
            except FileNotFoundError:
                continue
            (self.home / name).write_bytes(content)

    def set_aside(self) -> Path:
        """Give the copy another name, because it belongs to another folder that was once here; return its new path."""
        aside = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}")
        self.path.rename(aside)
        return aside


def refuse_unwritable(home: Location) -> None:
    """Write a small object below a URI, read it back and delete it.

    Raises:
        StorageError: one of the three is refused, or the store does not answer.
    """
    mark = home / f".shoal-preflight-{secrets.token_hex(8)}"
    sent = secrets.token_bytes(16)
    mark.write_bytes(sent)
    try:
        found = mark.read_bytes()
    finally:
        mark.delete()
    if found != sent:
        raise StorageError(f"{home}: an object that was just written reads differently; use another store")
