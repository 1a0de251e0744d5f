"""Checkpoints: a directory each, whole or absent; the newest that verifies is the truth.

``checkpoints/000000600000/`` holds ``tensors.safetensors`` and ``state.json``: format version, clock, data position,
configuration, and the tensors' checksum. Nothing in it can run code when it is read.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash
from safetensors.torch import load_file, save
from torch import Tensor

from shoal.errors import CheckpointError
from shoal.files import atomic_directory, temporary_beside

FORMAT_VERSION = 1
"""Read: this and every older one. A newer one is refused by name. Raised when a reader of today would misread it."""

STATE = "state.json"
TENSORS = "tensors.safetensors"


class NewerFormatError(CheckpointError):
    """A checkpoint of a newer format: falling back to an older one would undo what it holds."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that verified.

    Attributes:
        path: its directory.
        samples: the clock when it was written.
        batches: global batches seen by then.
        shape: of the images: channels, height, width.
        stream: the data stream's state.
        config: the configuration that made it, as plain values.
        num_classes: of the data set's labels; 0 where it has none.
        notes: what its writer wants to find again.
    """

    path: Path
    samples: int
    batches: int
    shape: tuple[int, int, int]
    stream: Mapping[str, Any]
    config: Mapping[str, Any]
    num_classes: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Read every tensor, on the CPU."""
        return load_file(self.path / TENSORS)


def directory_name(samples: int) -> str:
    """Return the name of the checkpoint at a sample; names sort as numbers do."""
    return f"{samples:012d}"


def write(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    samples: int,
    batches: int,
    shape: tuple[int, int, int],
    stream: Mapping[str, Any],
    config: Mapping[str, Any],
    num_classes: int = 0,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint that exists wholly or not at all; what is in its place goes when the new one is whole."""
    state = {
        "version": FORMAT_VERSION,
        "samples": samples,
        "batches": batches,
        "shape": shape,
        "num_classes": num_classes,
        "stream": stream,
        "config": config,
        "notes": dict(notes or {}),
    }
    with in_place_of(path) as folder:
        _write_into(folder, tensors, state)


@contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes ``path`` when the block ends without an error; then the old one goes."""
    aside = temporary_beside(path)
    try:
        with atomic_directory(path) as folder:
            yield folder
            if path.exists():
                path.replace(aside)
    finally:
        if aside.exists() and not path.exists():
            aside.replace(path)
        shutil.rmtree(aside, ignore_errors=True)


def _write_into(folder: Path, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> None:
    # As bytes, not by the library's own file writer: that one hides a full disk behind an error of its own.
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    (folder / TENSORS).write_bytes(content)
    state["tensors"] = {"bytes": len(content), "xxh3": xxhash.xxh3_64_hexdigest(content)}
    (folder / STATE).write_text(json.dumps({**state, "xxh3": _digest(state)}, indent=1))


def read(path: Path, name: object = None) -> Checkpoint:
    """Verify a checkpoint and return it.

    Args:
        path: its directory.
        name: what to call it in messages. (default: its path)

    Raises:
        CheckpointError: missing, damaged, or of a newer format.
    """
    name = name or path
    with unreadable(name):
        state = parse_state((path / STATE).read_bytes(), name)
        tensors, expected = path / TENSORS, state["tensors"]
        refuse_other_size(tensors.stat().st_size, state, name)
        if _checksum(tensors) != expected["xxh3"]:
            raise CheckpointError(f"checkpoint {name}: {TENSORS} does not match its checksum; it is damaged")
        channels, height, width = state["shape"]
        return Checkpoint(
            path=path,
            samples=state["samples"],
            batches=state["batches"],
            shape=(channels, height, width),
            num_classes=state.get("num_classes", 0),  # not noted before there were models that ask for it
            stream=state["stream"],
            config=state["config"],
            notes=state.get("notes", {}),
        )


def parse_state(text: bytes, name: object) -> dict[str, Any]:
    """Return what a checkpoint's ``state.json`` says, verified by its own checksum.

    Raises:
        CheckpointError: damaged, or of a newer format.
    """
    with unreadable(name):
        state = json.loads(text)
        version = state["version"]
        if version > FORMAT_VERSION:
            raise NewerFormatError(
                f"checkpoint {name} has format version {version}; this Shoal reads up to {FORMAT_VERSION}: upgrade it"
            )
        digest = state.pop("xxh3")
        if digest != _digest(state):
            raise CheckpointError(f"checkpoint {name}: {STATE} does not match its checksum; it is damaged")
        return dict(state)


def refuse_other_size(num_bytes: int, state: Mapping[str, Any], name: object) -> None:
    """Refuse tensors of another size than the state says.

    Raises:
        CheckpointError: with both sizes.
    """
    if num_bytes != state["tensors"]["bytes"]:
        raise CheckpointError(
            f"checkpoint {name}: {TENSORS} has {num_bytes} bytes, not {state['tensors']['bytes']}: cut off"
        )


@contextmanager
def unreadable(name: object) -> Iterator[None]:
    """Call whatever is wrong with the content of a checkpoint's files an error of the checkpoint."""
    try:
        yield
    except CheckpointError:
        raise
    # Other trouble of the storage is no damage: passing over a good checkpoint for it would lose what it holds.
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {name} cannot be read: {error}") from None


def saved(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, newest first, verified or not."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()), reverse=True)


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


def _digest(state: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(state, sort_keys=True).encode())


def prune(folder: Path, keep: int, now: int | None = None) -> None:
    """Delete all but the newest ``keep`` checkpoints, and what killed writers left behind.

    Those of a later sample than ``now`` go first: a run that is at ``now`` has passed them over as damaged.
    """
    good = [path for path in saved(folder) if now is None or int(path.name) <= now]
    damaged = [path for path in saved(folder) if path not in good]
    for path in [*good[keep:], *damaged, *_leftovers(folder)]:
        aside = path if path.name.endswith(".tmp") else path.replace(temporary_beside(path))
        shutil.rmtree(aside, ignore_errors=True)


def _leftovers(folder: Path) -> Iterator[Path]:
    return folder.glob(".*.tmp")


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
