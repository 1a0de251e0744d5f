"""Checkpoints at a URI: one exists there only when it is whole, and the newest that verifies is the truth.

The tensors are uploaded first and ``state.json`` last; ``state.json`` is deleted first. So whoever finds it finds the
tensors that it names, unless they were damaged later.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shoal import checkpoint
from shoal.checkpoint import MEASURED, STATE, TENSORS, Checkpoint, NewerFormatError, best_among, parse_state
from shoal.checkpoint_format import refuse_other_size
from shoal.checkpoint_names import OWNERS, Claim, Name, claims_among, newest_first
from shoal.errors import CheckpointError, MissingError
from shoal.files import in_place_of
from shoal.storage.location import Location

LOOKS = 3
"""At a folder whose checkpoints are pruned while they are being fetched."""

Files = Mapping[str, int]


@dataclass(frozen=True)
class Found:
    """What a search for the newest checkpoint came to.

    Attributes:
        checkpoint: the newest that verifies, in the copy; None where there is none at all.
        at_home: whether it is at the URI. If not, it lies in the copy only.
        passed_over: why newer ones cannot be used.
        newest_at_home: the sample of the newest one at the URI, sound or not.
    """

    checkpoint: Checkpoint | None
    at_home: bool = True
    passed_over: list[str] = field(default_factory=list)
    newest_at_home: int | None = None


def find(home: Location, folder: Path) -> Found:
    """Return the newest checkpoint that verifies, of those at a URI and those in its copy; fetch it if need be.

    Which ones count, the claims at the URI say. Of one in both places, that at the URI is taken, unless only the copy
    is sound.

    Raises:
        CheckpointError: there are checkpoints, but none verifies, or the newest was written by a newer Shoal.
        StorageError: the store refuses or does not answer.
    """
    for left in reversed(range(LOOKS)):
        files = home.files()
        there = names(files)
        try:
            return _find(home, folder, files, there)
        except MissingError:
            if not left or names(home.files()) == there:
                raise
    raise AssertionError


def _find(home: Location, folder: Path, files: Files, there: list[str]) -> Found:
    here = checkpoint.directories(folder)
    newest_at_home = samples_of(there[0]) if there else None
    problems: list[str] = []
    for name in newest_first({*there, *here}, _claims(files)):
        if name in there:
            try:
                num_bytes = files.get(f"{name}/{TENSORS}")
                found = fetch(home / name, folder / name, num_bytes)
                whole = num_bytes == (found.path / TENSORS).stat().st_size  # or the copy alone is
                return Found(found, whole, problems, newest_at_home)
            except NewerFormatError:
                raise
            except CheckpointError as error:
                problems.append(str(error))
        if name in here:
            try:
                return Found(checkpoint.read(folder / name), False, problems, newest_at_home)
            except NewerFormatError:
                raise
            except CheckpointError as error:
                problems.append(str(error))
    if problems:
        raise CheckpointError(
            "\n".join([f"no checkpoint in {home} verifies; start anew with another --out", *problems])
        )
    return Found(None)


def names(files: Files) -> list[str]:
    """Return the names of the checkpoints that count, by the files below their folder and the claims there."""
    return newest_first(
        (path.removesuffix(f"/{STATE}") for path in files if path.endswith(f"/{STATE}")), _claims(files)
    )


def samples_of(name: str) -> int:
    """Return the clock of the checkpoint of a name."""
    parsed = Name.parse(name)
    assert parsed is not None
    return parsed.samples


def _claims(files: Iterable[str]) -> list[Claim]:
    return claims_among(path.removeprefix(f"{OWNERS}/") for path in files)


def fetch(home: Location, path: Path, num_bytes: int | None, expected: bytes | None = None) -> Checkpoint:
    """Copy a checkpoint from its URI, unless the copy has it; whole or not at all.

    Args:
        home: its folder at the URI.
        path: its directory in the copy.
        num_bytes: of its tensors, as listed; None: they are not there.
        expected: the content of its ``state.json``, where only that very checkpoint will do.

    Raises:
        CheckpointError: damaged there, another one than expected, or of a newer format.
        MissingError: it is not there, or no longer.
        StorageError: the store refuses or does not answer.
    """
    text = (home / STATE).read_bytes()
    if expected is not None and text != expected:
        raise CheckpointError(f"checkpoint {home} was replaced meanwhile: another process trains this run; stop it")
    state = parse_state(text, home)
    if (path / STATE).is_file() and (path / STATE).read_bytes() == text:
        try:
            return checkpoint.read(path)
        except CheckpointError:
            pass  # the copy is damaged
    if num_bytes is None:
        raise CheckpointError(f"checkpoint {home}: {TENSORS} is not there")
    refuse_other_size(num_bytes, state, home)
    with in_place_of(path) as folder:
        (folder / STATE).write_bytes(text)
        (home / TENSORS).download(folder / TENSORS)
        checkpoint.read(folder, home)
    return checkpoint.read(path)


def is_at(home: Location, path: Path) -> bool:
    """Return whether a checkpoint of the copy is at the URI, by its ``state.json`` and the size of its tensors."""
    try:
        same = (home / STATE).read_bytes() == (path / STATE).read_bytes()
        return same and (home / TENSORS).size() == (path / TENSORS).stat().st_size
    except (MissingError, FileNotFoundError):
        return False


def publish(path: Path, home: Location) -> bool:
    """Copy a checkpoint to its URI, where it appears whole or not at all.

    Returns:
        Whether it is there now. One that does not verify, or is pruned meanwhile, is not.

    Raises:
        StorageError: the store refuses or does not answer.
    """
    try:
        checkpoint.read(path)
        text = (path / STATE).read_bytes()
        (home / STATE).delete()  # of a damaged one, whose tensors are about to be replaced
        (home / TENSORS).upload(path / TENSORS)
    except CheckpointError:
        return False
    except (FileNotFoundError, MissingError):
        if path.exists():
            raise
        home.delete()
        return False
    (home / STATE).write_bytes(text)
    return True


def prune(home: Location, keep: int, now: int, *, epoch: int | None = None, best_by: str | None = None) -> None:
    """Delete all but the newest ``keep`` checkpoints below a URI that count, and what is no whole one.

    The arguments are those of `checkpoint.prune`.
    """
    files = home.files()
    named = {text: Name.parse(text) for text in {path.partition("/")[0] for path in files if "/" in path}}
    ours = {text: name for text, name in named.items() if name and (epoch is None or name.epoch <= epoch)}
    good = [text for text in names(files) if text in ours and ours[text].samples <= now]
    best = best_among({text: _measured(home / text) for text in good}, best_by) if best_by else None
    for text in ours.keys() - {*good[:keep], best}:
        (home / text / STATE).delete()
        (home / text).delete()


def _measured(home: Location) -> Mapping[str, float]:
    try:
        return dict(parse_state((home / STATE).read_bytes(), home)["notes"].get(MEASURED, {}))
    except (CheckpointError, MissingError):
        return {}
