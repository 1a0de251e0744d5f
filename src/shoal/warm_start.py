"""Starting a run from another run's weights (``init_from``): which tensors fit, and putting them in place.

The clock, the data position and the optimizers start afresh; of the other run only a checkpoint is read, no code.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from shoal import checkpoint
from shoal.checkpoint import TENSORS, Checkpoint, NewerFormatError, directory_name
from shoal.config import RunConfig
from shoal.data import DataSet
from shoal.errors import CheckpointError, ConfigError
from shoal.objectives import Objective
from shoal.run import CONFIG, Run
from shoal.run_files import Place
from shoal.state import build_objective

NOTED = "init_from"
"""The key of ``environment.json`` under which a run notes what it took."""

LISTED = 4
"""New tensors that a summary names; ``environment.json`` has them all."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Left:
    """A tensor that keeps its fresh initialisation: its shape here and there, None where the other run has none."""

    here: Shape
    there: Shape | None

    def __str__(self) -> str:
        """Say why."""
        if self.there is None:
            return f"{list(self.here)} (not there)"
        if self.there == self.here:
            return f"{list(self.here)} (the rest of its layer does not fit)"
        return f"{list(self.here)} (there {list(self.there)})"


@dataclass(frozen=True)
class WarmStart:
    """What a new run takes from another one.

    Attributes:
        run: the other run's directory.
        samples: the clock of its checkpoint.
        averaged: the networks of which it takes the averaged weights.
        taken: tensors, named as in ``<network>.<tensor>``.
        left: tensors of the new run that keep their fresh initialisation.
        epoch: of the checkpoint's writer.
    """

    run: Path
    samples: int
    averaged: tuple[str, ...]
    taken: tuple[str, ...]
    left: Mapping[str, Left]
    epoch: int = 1

    def summary(self) -> str:
        """Return a line for people, e.g. ``starts from runs/a at sample 600,000: 22 of 24 tensors taken; new: …``."""
        total = len(self.taken) + len(self.left)
        share = f"{len(self.taken)} of {total}" if self.left else f"all {total}"
        averaged = f", averaged where it kept an average ({', '.join(self.averaged)})" if self.averaged else ""
        line = f"starts from {self.run} at sample {self.samples:,}: {share} tensors taken{averaged}"
        if self.left:
            named = [f"{name} {left}" for name, left in self.left.items()]
            rest = f" and {len(named) - LISTED} more (environment.json lists them)" if len(named) > LISTED else ""
            line += f"; new: {', '.join(named[:LISTED])}{rest}"
        return line

    def facts(self) -> dict[str, Any]:
        """Return all of it as plain values, for ``environment.json``."""
        return {
            "run": str(self.run),
            "samples": self.samples,
            "epoch": self.epoch,
            "averaged": list(self.averaged),
            "taken": list(self.taken),
            "left": {
                name: {"here": list(left.here), "there": None if left.there is None else list(left.there)}
                for name, left in self.left.items()
            },
        }


def plan(config: RunConfig, data: DataSet, own: Place) -> WarmStart | None:
    """Return what a new run at ``own`` will take, by shapes alone; None where it starts from nothing.

    Raises:
        ConfigError: there is nothing to take.
    """
    if config.init_from is None:
        return None
    with torch.device("meta"):
        objective = build_objective(config, data.shape, data.num_classes)
    return match(objective, newest_of(config.init_from, own))


def newest_of(init_from: Path, own: Place) -> Checkpoint:
    """Return the checkpoint that a new run at ``own`` starts from: the newest that verifies.

    Raises:
        ConfigError: the run itself, no run, or a run without a checkpoint that verifies.
        CheckpointError: the newest was written by a newer Shoal.
    """
    if isinstance(own, Path) and own.resolve() == init_from:
        raise ConfigError(f"init_from={init_from} is the run itself; give another --out, or another run to start from")
    if not (init_from / CONFIG).is_file():
        raise ConfigError(
            f"init_from={init_from} is not a run directory (no {CONFIG} in it); give the --out of a training run"
        )
    try:
        found = checkpoint.newest(init_from / "checkpoints")
    except NewerFormatError:
        raise
    except CheckpointError as error:
        problems = str(error).partition("\n")[2]
        raise ConfigError(
            f"init_from={init_from}: none of its checkpoints verifies; start from another run\n{problems}"
        ) from None
    if found is None:
        raise ConfigError(
            f"init_from={init_from} has no checkpoint yet; let it train until checkpoint.every_samples, or stop it"
        )
    return found


def announced(run: Run) -> Checkpoint | None:
    """Return the checkpoint that a run without one of its own starts from; None where it starts from nothing.

    It is the one whose tensors were told to the user, even if the other run has trained on since.

    Raises:
        ConfigError: as ``newest_of``; or the announced checkpoint is no longer there.
    """
    init_from = run.config.init_from
    if init_from is None:
        return None
    noted = Run.facts_of(run.path).get(NOTED)
    if not isinstance(noted, dict) or noted.get("run") != str(init_from) or not isinstance(noted.get("samples"), int):
        return newest_of(init_from, run.path)
    path = init_from / "checkpoints" / directory_name(noted["samples"], noted.get("epoch", 1))
    try:
        return checkpoint.read(path)
    except CheckpointError as error:
        raise ConfigError(
            f"{path}, which {run.path} was to start from, is gone ({error});"
            " --resume starts from the newest that is there now"
        ) from None


def match(objective: Objective, source: Checkpoint) -> WarmStart:
    """Return which tensors of an objective's networks, of any device, equal some of a checkpoint in name and shape.

    A layer's buffers go together, since they make sense together: one that does not fit leaves the others too.

    Raises:
        ConfigError: none does.
    """
    with _opened(source) as file:
        there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping
    averaged = _averaged(there)
    taken: list[str] = []
    left: dict[str, Left] = {}
    for net, module in objective.nets.items():
        shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
        theirs = {key: there.get(_saved_name(net, key, averaged)) for key in shapes}
        unfit_layers = {_layer(key) for key, shape in shapes.items() if theirs[key] != shape}
        buffers = {key for key, _ in module.named_buffers()}
        for key, shape in shapes.items():
            if theirs[key] == shape and not (key in buffers and _layer(key) in unfit_layers):
                taken.append(f"{net}.{key}")
            else:
                left[f"{net}.{key}"] = Left(shape, theirs[key])
    run = source.path.parent.parent
    if not taken:
        raise ConfigError(_nothing_in_common(run, there, left))
    used = tuple(net for net in objective.nets if net in averaged)
    return WarmStart(run, source.samples, used, tuple(taken), left, source.epoch)


@torch.no_grad()
def fill(objective: Objective, source: Checkpoint) -> WarmStart:
    """Put what matches into the networks of an objective; return what was taken.

    Raises:
        ConfigError: nothing matches.
    """
    found = match(objective, source)
    taken, averaged = set(found.taken), set(found.averaged)
    with _opened(source) as file:
        for net, key, tensor in _tensors(objective.nets):
            if f"{net}.{key}" in taken:
                tensor.copy_(file.get_tensor(_saved_name(net, key, averaged)))
    return found


def _opened(source: Checkpoint) -> Any:
    """Open the tensors for reading one by one: the optimizers' are as large again, and not wanted."""
    try:
        return safe_open(source.path / TENSORS, framework="pt")
    except FileNotFoundError:
        raise ConfigError(
            f"{source.path}, which the run starts from, cannot be read here: it was deleted since, or lies on storage"
            " that not every worker sees; start again, or move it there"
        ) from None


def _averaged(names: Mapping[str, Shape]) -> set[str]:
    """Return the networks of a checkpoint that have averaged weights in it."""
    return {name.removeprefix("ema/").partition(".")[0] for name in names if name.startswith("ema/")}


def _saved_name(net: str, key: str, averaged: set[str]) -> str:
    return f"{'ema' if net in averaged else 'nets'}/{net}.{key}"


def _layer(key: str) -> str:
    return key.rpartition(".")[0]


def _tensors(nets: Mapping[str, nn.Module]) -> Iterator[tuple[str, str, Tensor]]:
    for net, module in nets.items():
        for key, tensor in module.state_dict().items():
            yield net, key, tensor


def _nothing_in_common(run: Path, there: Mapping[str, Shape], left: Mapping[str, Left]) -> str:
    theirs = sorted({name.removeprefix("nets/").partition(".")[0] for name in there if name.startswith("nets/")})
    ours = sorted({name.partition(".")[0] for name in left})
    example = next((f", e.g. {name} {tensor}" for name, tensor in left.items() if tensor.there is not None), "")
    return (
        f"init_from={run}: none of its tensors ({', '.join(theirs)}) has the name and shape of one of this run's"
        f" ({', '.join(ours)}){example}; start from a run with such nets, or leave init_from out"
    )
