"""The checkpoints of a folder: the newest that counts and verifies is the truth.

What one is: `shoal.checkpoint_format`. Which ones count, where several processes have written some:
`shoal.checkpoint_names`.
"""

import shutil
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from shoal.checkpoint_format import (
    FORMAT_VERSION,
    MEASURED,
    STATE,
    TENSORS,
    Checkpoint,
    NewerFormatError,
    Saver,
    directory_name,
    parse_state,
    read,
    write,
)
from shoal.checkpoint_names import OWNERS, Claim, Name, claims_among, newest_first
from shoal.errors import CheckpointError
from shoal.files import temporary_beside
from shoal.quality.better import better

__all__ = [
    "FORMAT_VERSION",
    "MEASURED",
    "STATE",
    "TENSORS",
    "Checkpoint",
    "NewerFormatError",
    "Saver",
    "best_among",
    "best_of",
    "directories",
    "directory_name",
    "newest",
    "parse_state",
    "prune",
    "prune_older",
    "read",
    "saved",
    "write",
]

Key = TypeVar("Key", bound=Hashable)


def saved(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder that count, newest first, verified or not."""
    return [folder / name for name in newest_first(directories(folder), _claims(folder))]


def directories(folder: Path) -> list[str]:
    """Return the names of the directories of a folder, whether they are checkpoints or not."""
    if not folder.is_dir():
        return []
    return [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def newest(folder: Path, *, passed_over: list[str] | None = None) -> Checkpoint | None:
    """Return the newest checkpoint that verifies, or None where there is none at all.

    Why newer ones were passed over is appended to ``passed_over``.

    Raises:
        CheckpointError: there are checkpoints, but none verifies, or the newest was written by a newer Shoal.
    """
    problems: list[str] = []
    for path in saved(folder):
        try:
            checkpoint = read(path)
        except NewerFormatError:
            raise
        except CheckpointError as error:
            problems.append(str(error))
        else:
            if passed_over is not None:
                passed_over += problems
            return checkpoint
    if problems:
        lost = f"no checkpoint in {folder} verifies; start anew with another --out"
        raise CheckpointError("\n".join([lost, *problems]))
    return None


def prune(
    folder: Path, keep: int, now: int | None = None, *, epoch: int | None = None, best_by: str | None = None
) -> None:
    """Delete all but the newest ``keep`` checkpoints that count, and what killed writers left behind.

    Args:
        folder: of the checkpoints.
        keep: how many.
        now: the clock of the run: those of a later sample go too, since it has passed them over as damaged.
        epoch: of the run's owner: what later ones have written is left alone, if they are any.
        best_by: a measure, as `best_of` takes it: the best by it is kept too.
    """
    claims = _claims(folder)
    ours = {text: name for text in directories(folder) if (name := Name.parse(text)) and _is_older(name, epoch)}
    good = [folder / text for text in newest_first(ours, claims) if now is None or ours[text].samples <= now]
    kept = {*good[:keep], best_of(good, best_by)}
    _delete(path for path in [*(folder / text for text in ours), *_leftovers(folder, epoch)] if path not in kept)


def prune_older(folder: Path, name: str) -> None:
    """Delete all checkpoints that are older than one of them, and what killed readers left behind."""
    this = Name.parse(name)
    assert this is not None
    older = [folder / text for text in directories(folder) if (other := Name.parse(text)) and other < this]
    _delete([*older, *_leftovers(folder, None)])


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(FileNotFoundError):  # another reader of this copy was faster
            aside = path if path.name.endswith(".tmp") else path.replace(temporary_beside(path))
            shutil.rmtree(aside, ignore_errors=True)


def best_of(paths: Sequence[Path], metric: str | None) -> Path | None:
    """Return the checkpoint that was measured best, as `best_among` says; None where there is nothing to choose by."""
    return best_among({path: _measured(path) for path in paths}, metric) if metric else None


def best_among(measured: Mapping[Key, Mapping[str, float]], metric: str) -> Key | None:
    """Return the key of the best checkpoint, of two equals the older one; None where none was measured.

    Args:
        measured: of each checkpoint, newest first, its measures by name.
        metric: a measure, or its family: where an extractor's id follows, all are compared by the newest one's.
    """
    named = (name for found in measured.values() for name in sorted(found) if metric in (name, name.partition("/")[0]))
    name = next(named, None)
    if name is None:
        return None
    sign = 1 if better(name) == "higher" else -1
    values = [(sign * found[name], key) for key, found in measured.items() if name in found]
    return max(reversed(values), key=lambda pair: pair[0])[1]


def _measured(path: Path) -> Mapping[str, float]:
    try:
        return dict(parse_state((path / STATE).read_bytes(), path)["notes"].get(MEASURED, {}))
    except (CheckpointError, FileNotFoundError, NotADirectoryError):
        return {}


def _is_older(name: Name, epoch: int | None) -> bool:
    return epoch is None or name.epoch <= epoch


def _leftovers(folder: Path, epoch: int | None) -> Iterator[Path]:
    for path in folder.glob(".*.tmp"):
        name = Name.of_temporary(path.name)
        if name is not None and _is_older(name, epoch):
            yield path


def _claims(folder: Path) -> list[Claim]:
    try:
        return claims_among(path.name for path in (folder / OWNERS).iterdir())
    except FileNotFoundError:
        return []
