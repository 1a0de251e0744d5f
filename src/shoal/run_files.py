"""The files of a run, here or at a URI: their names, who may write them, how they come to this node."""

import fcntl
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from shoal.errors import MissingError, RunError
from shoal.storage.location import Location
from shoal.storage.mirror import Mirror

_log = logging.getLogger("shoal.run")

CONFIG, ENVIRONMENT, PLUGIN, METRICS = "config.yaml", "environment.json", "plugin.py", "metrics.jsonl"
EVALUATION = "eval.json"
LOCK = ".lock"
LOCK_POLL_SEC = 0.1
FAILURES = "failures.jsonl"
"""A row for every time that workers were lost and the group was started again."""

STARTS = "starts.jsonl"
"""A row for every incarnation of the run's workers: where it went on, and what is done again."""
WORKERS = "workers.jsonl"
"""A row per tick: what each worker did with its time."""
HISTORY = (METRICS, STARTS, WORKERS)
"""Files of rows that lead up to a checkpoint: at a URI none is there before them."""
ENDED = "ended.json"
"""How the run ended; absent while it is trained, and after a loss that nobody lived to tell."""

CHECKPOINTS = "checkpoints"
IDENTITY = "id"
"""The key of ``environment.json`` that tells a run at a URI from another one that was there before."""

Place = Path | Location
"""Where a run or a data set is: a path, or a location that may be remote."""


@contextmanager
def locked(path: Path, name: object = None, *, wait_sec: float = 0.0) -> Iterator[None]:
    """Keep every other process from writing into a directory, called ``name`` in messages, while the block lasts.

    Args:
        path: the directory.
        name: of it.
        wait_sec: for a process that is about to end.

    Raises:
        RunError: another one does.
    """
    with (path / LOCK).open("w") as file:
        if not lock(file, wait_sec):
            raise RunError(f"{name or path} is being trained by another process; wait for it, or stop it")
        yield


def lock(file: IO[Any], wait_sec: float) -> bool:
    """Lock a file until it is closed, or this process ends; tell whether that was possible within some seconds."""
    until = time.monotonic() + wait_sec
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(LOCK_POLL_SEC)
        else:
            return True


def refuse_existing(place: Place) -> None:
    """Refuse to write a new run over something.

    Raises:
        RunError: something is there.
    """
    path = local_path(place)
    if path is None:
        there = {entry.name for entry in Location.parse(place).list()}
        run, other = CONFIG in there, bool(there - {ENVIRONMENT, PLUGIN})  # left by a process that was killed
    else:
        run, other = (path / CONFIG).is_file(), path.exists() and (not path.is_dir() or any(path.iterdir()))
    if run:
        raise RunError(f"{place} already holds a run; go on with --resume, or give another --out")
    if other:
        raise RunError(f"{place} exists and is not a run; give another --out")


def refuse_locked(path: Path, name: object) -> None:
    """Refuse a directory that another process is writing into.

    Raises:
        RunError: one is.
    """
    if is_locked(path / LOCK):
        raise RunError(f"{name} is being trained by another process; wait for it, or stop it")


def is_locked(path: Path) -> bool:
    """Tell whether a process holds the lock; it is not taken from anyone, and let go at once."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def fetch_settings(mirror: Mirror, *also: str) -> None:
    """Copy a run's settings from its URI, and other small files where they are wanted.

    A copy that belongs to another run, which was at that URI before, is set aside.

    Raises:
        RunError: there is no run.
        StorageError: the store refuses or does not answer.
    """
    try:
        (mirror.home / CONFIG).size()
    except MissingError as error:
        raise RunError(f"{mirror.home} is not a run directory ({error}); give the --out of a training run") from None
    with mirror.alone():
        before, now = read_facts(mirror.path), read_facts(mirror.home)
        if before and before.get(IDENTITY) != now.get(IDENTITY):
            aside = mirror.set_aside()
            _log.warning("%s is another run than the copy here, which was kept as %s", mirror.home, aside)
        mirror.pull((ENVIRONMENT, PLUGIN, *also, CONFIG))


def local_path(place: Place) -> Path | None:
    """Return the path of a place on this machine; None at a URI."""
    return place if isinstance(place, Path) else place.local


def located(data: Place) -> Location:
    """Return where a data set is, so that it is found from any folder, and after a link has come to lead elsewhere."""
    path = local_path(data)
    return Location.parse(data if path is None else path.resolve())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a file with a JSON object per line, up to the first that is cut off or damaged."""
    rows: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n") or not isinstance(row, dict):
                break
            rows.append(row)
    return rows


def readable_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file with a JSON object per line, where each stands for itself; damaged ones are left out."""
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row


def read_facts(place: Place) -> dict[str, Any]:
    """Return what a run directory notes of where it ran last; empty where there is none.

    Raises:
        RunError: it is damaged.
    """
    file = place / ENVIRONMENT
    try:
        text = Location.parse(file).read_bytes()
    except MissingError:
        return {}
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise RunError(f"{file} is damaged ({error}); start anew with another --out") from None


def read_ended(place: Place) -> dict[str, Any]:
    """Return how a run ended: ``how`` (finished, stopped, failed), ``samples``, ``time``, ``why``, ``epoch``.

    Empty while it is trained, where its workers were lost, and where an earlier incarnation than the last one says so:
    that was cut off, and woke up later.
    """
    ended, starts = (_read(place / name) for name in (ENDED, STARTS))
    try:
        told, last = json.loads(ended), json.loads(starts.splitlines()[-1])
        return dict(told) if told["epoch"] == last["epoch"] else {}
    except (ValueError, KeyError, TypeError, IndexError):
        return {}


def _read(file: Place) -> bytes:
    try:
        return Location.parse(file).read_bytes()
    except MissingError:
        return b""


def copy_of(place: Place, *files: str) -> Path:
    """Return a run's directory or, of one at a URI, that of a copy to look at, with its settings and ``files``.

    Raises:
        RunError: there is no run at the URI.
        StorageError: the store refuses or does not answer.
    """
    path = local_path(place)
    if path is not None:
        return path
    mirror = Mirror.of(Location.parse(place), writes=False)
    fetch_settings(mirror, *files)
    return mirror.path
