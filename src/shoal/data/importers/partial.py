"""The hidden folder in which a data set grows, and what of it is there for good after a kill.

``.NAME.partial`` beside the data set's place holds ``data``, which becomes the data set by a rename, ``lock``, which
one process at a time holds, and ``progress.jsonl``: first what is imported from where, then a line for each time that
all rows so far were put on the disk.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from shoal.data.importers.routing import Place
from shoal.data.manifest import Shard
from shoal.data.shard_writer import Saved
from shoal.errors import DataError
from shoal.files import sync_directory

JOURNAL_VERSION = 1
DATA, JOURNAL, LOCK = "data", "progress.jsonl", "lock"


@dataclass(frozen=True)
class Command:
    """What is imported: an interrupted import is continued by an equal one only.

    Attributes:
        kind: of importer.
        src: where the images come from.
        options: all that says how they become rows.
        identity: of what is at ``src``: another one for changed files.
    """

    kind: str
    src: str | None
    options: Mapping[str, Any]
    identity: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the command as it comes back out of a JSON file."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return document


@dataclass(frozen=True)
class Checkpoint:
    """Rows that are on the disk for good.

    Attributes:
        place: from which the source is read on.
        saved: of each split, how many rows, and where those are that are in no finished shard.
        attempt: the number of the process that wrote it, counted from 0.
        is_done: whether all rows of the source are in finished shards.
    """

    place: Place
    saved: Mapping[str, Saved]
    attempt: int = 0
    is_done: bool = False

    @property
    def num_rows(self) -> int:
        """Return the rows of all splits."""
        return sum(saved.num_rows for saved in self.saved.values())


class Partial:
    """A folder to write a data set into, with the checkpoints of earlier attempts at the same.

    A context manager: inside, this process has it for itself. Whoever leaves it calls ``publish`` or ``clear`` before,
    or keeps what is there for the next attempt.

    Attributes:
        data: the folder of the shards.
        checkpoints: of all attempts, oldest first.
        shards: that were finished by the last checkpoint.
    """

    def __init__(self, out: Path, command: Command | None, *, fresh: bool = False) -> None:
        self.path = out.with_name(f".{out.name}.partial")
        self.data = self.path / DATA
        self.checkpoints: list[Checkpoint] = []
        self.shards: list[Shard] = []
        self._out = out
        self._command = command
        self._fresh = fresh
        self._lock: BinaryIO | None = None

    def __enter__(self) -> Self:
        """Take the folder; raises DataError where another process has it, or where it holds another command's work."""
        self._lock = self._take_lock()
        try:
            if not self._fresh:
                self._read()
            if not self.checkpoints:
                self._begin()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._lock is not None
        self._lock.close()

    def save(self, checkpoint: Checkpoint, shards: Sequence[Shard]) -> None:
        """Write down what has been written; ``shards`` are all that are finished."""
        known = {shard.path for shard in self.shards}
        new = [shard for shard in shards if shard.path not in known]
        for shard in new:
            _sync(self.data / shard.path)
        sync_directory(self.data)
        self._append({**asdict(checkpoint), "shards": [shard.model_dump(mode="json") for shard in new]})
        for saved in self.checkpoints[-1].saved.values() if self.checkpoints else ():
            if saved.tail is not None:
                (self.data / saved.tail).unlink(missing_ok=True)
        self.checkpoints.append(checkpoint)
        self.shards += new

    def publish(self) -> None:
        """Make the data set of ``data``, which is whole, appear in its place; nothing else is left."""
        for left in (*self.data.glob("*.part"), *self.data.glob(".*.tmp")):  # by attempts that were killed
            left.unlink()
        for folder, _, names in os.walk(self.data):
            for name in names:
                _sync(Path(folder) / name)
            sync_directory(Path(folder))
        self.data.replace(self._out)
        sync_directory(self._out.parent)
        self.clear()

    def clear(self) -> None:
        """Throw everything away."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _take_lock(self) -> BinaryIO:
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                lock = (self.path / LOCK).open("a+b")
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if os.path.samestat(os.fstat(lock.fileno()), (self.path / LOCK).stat()):
                        return lock  # and not one of a folder that another process has just cleared away
                except BlockingIOError:
                    lock.close()
                    raise DataError(
                        f"another process is importing into {self._out}; wait for it, or choose another --out"
                    ) from None
                except BaseException:
                    lock.close()
                    raise
                lock.close()

    def _read(self) -> None:
        """Take over the checkpoints, if they can be gone on from. Raises DataError for those of another command."""
        journal = self.path / JOURNAL
        documents = []
        num_bytes = 0
        for line in journal.read_bytes().splitlines(keepends=True) if journal.exists() else ():
            try:
                documents.append(json.loads(line if line.endswith(b"\n") else b""))
            except ValueError:  # cut off by a kill
                break
            num_bytes += len(line)
        if len(documents) < 2 or documents[0]["version"] != JOURNAL_VERSION or documents[0]["command"] is None:
            return
        for document in documents[1:]:
            self.shards += [Shard.model_validate_json(json.dumps(shard)) for shard in document.pop("shards")]
            saved = {split: Saved(**values) for split, values in document["saved"].items()}
            self.checkpoints.append(Checkpoint(**{**document, "place": Place(**document["place"]), "saved": saved}))
        self._refuse_another(documents[0]["command"])
        if not self._is_there():
            self.checkpoints, self.shards = [], []
            return
        os.truncate(journal, num_bytes)
        self._forget_later_files()

    def _refuse_another(self, before: dict[str, Any]) -> None:
        now = None if self._command is None else self._command.to_json()
        if before == now:
            return
        what = f"an import into {self._out} was broken off: {self.path} holds {self.checkpoints[-1].num_rows:,} images"
        ways = "add --fresh to throw that away and start anew, or choose another --out"
        if now is None:
            raise DataError(f"{what} of {before['src']}; {ways}")
        if {**before, "identity": None} == {**now, "identity": None}:
            raise DataError(f"{what} of {before['src']}, which has changed since; {ways}")
        raise DataError(
            f"{what} by another command (then {_words(before, now)}; now {_words(now, before)}); "
            f"give that command again to go on, {ways}"
        )

    def _is_there(self) -> bool:
        last = self.checkpoints[-1]
        if last.is_done:
            return self.data.is_dir()
        sizes = {shard.path: shard.bytes for shard in self.shards}
        files = {entry.name: entry.stat().st_size for entry in self.data.iterdir()} if self.data.is_dir() else {}
        return sizes.items() <= files.items() and _names(last) <= files.keys()

    def _begin(self) -> None:
        for entry in self.path.iterdir():
            if entry.name != LOCK:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.data.mkdir()
        self._append(
            {"version": JOURNAL_VERSION, "command": None if self._command is None else self._command.to_json()}
        )

    def _forget_later_files(self) -> None:
        """Delete what was written after the last checkpoint."""
        if not self.checkpoints[-1].is_done:
            known = {shard.path for shard in self.shards} | _names(self.checkpoints[-1])
            for file in self.data.glob("*.part"):
                if file.name not in known:
                    file.unlink()

    def _append(self, document: Mapping[str, Any]) -> None:
        with (self.path / JOURNAL).open("ab") as file:
            file.write(json.dumps(document, separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        sync_directory(self.path)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _names(checkpoint: Checkpoint) -> set[str]:
    """Return the files that hold rows of no finished shard."""
    return {name for saved in checkpoint.saved.values() for name in (saved.file, saved.tail) if name is not None}


def _words(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return what of a command differs from another one."""
    flat, against = ({"kind": c["kind"], "src": c["src"], **c["options"]} for c in (one, other))
    different = {name: flat.get(name) for name in {**flat, **against} if flat.get(name) != against.get(name)}
    return ", ".join(f"{name}={value}" for name, value in different.items())
