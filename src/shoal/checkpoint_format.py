"""One checkpoint: a directory, whole or absent.

``checkpoints/000000600000/`` holds ``tensors.safetensors`` and ``state.json``: format version, clock, data position,
configuration, and the tensors' checksum. Nothing in it can run code when it is read.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import xxhash
from safetensors.torch import load_file, save
from torch import Tensor

from shoal.checkpoint_names import Name
from shoal.errors import CheckpointError
from shoal.files import in_place_of

FORMAT_VERSION = 1
"""Read: this and every older one. A newer one is refused by name. Raised when a reader of today would misread it."""

STATE = "state.json"
TENSORS = "tensors.safetensors"

MEASURED = "measured"
"""The key of the notes under which stands what was measured of the model at this very sample."""


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
        epoch: of its writer; see `shoal.ownership`.
    """

    path: Path
    samples: int
    batches: int
    shape: tuple[int, int, int]
    stream: Mapping[str, Any]
    config: Mapping[str, Any]
    num_classes: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)
    epoch: int = 1

    def tensors(self) -> dict[str, Tensor]:
        """Read every tensor, on the CPU."""
        return load_file(self.path / TENSORS)


@dataclass(frozen=True)
class Saver:
    """A state of the training that can be written: what a tick has to save.

    Attributes:
        tensors: by name. Those of a tick are the live ones: they change with the next step.
        facts: the other keywords of `write`.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    @property
    def samples(self) -> int:
        """The clock."""
        return int(self.facts["samples"])

    def copied(self, **facts: Any) -> "Saver":
        """Return a copy on the CPU, which stays as it is while the training goes on, with more facts."""
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.tensors.items()}
        return replace(self, tensors=copies, facts={**self.facts, **facts})

    def __call__(self, path: Path) -> None:
        """Write it into a directory; the run that this lies in must exist, or be mounted."""
        write(path, self.tensors, parents=False, **self.facts)


def directory_name(samples: int, epoch: int = 1) -> str:
    """Return the name of the checkpoint at a sample; of one epoch, names sort as numbers do."""
    return str(Name(samples, epoch))


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
    epoch: int = 1,
    parents: bool = True,
) -> None:
    """Write a checkpoint that exists wholly or not at all; what is in its place goes when the new one is whole.

    The folder that it lies in is made if need be, and all above that unless ``parents`` is false.
    """
    state = {
        "version": FORMAT_VERSION,
        "samples": samples,
        "epoch": epoch,
        "batches": batches,
        "shape": shape,
        "num_classes": num_classes,
        "stream": stream,
        "config": config,
        "notes": dict(notes or {}),
    }
    with in_place_of(path, parents=parents) as folder:
        _write_into(folder, tensors, state)


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
            epoch=state.get("epoch", 1),  # nor this, before there were epochs
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


def _digest(state: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(state, sort_keys=True).encode())


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
