"""Whether a run's checkpoints will fit on its disk: arithmetic, before it starts."""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from shoal.checkpoint import TENSORS, directories
from shoal.config import RunConfig
from shoal.data import DataSet
from shoal.errors import StorageError
from shoal.state import build_objective

OTHER_CHECKPOINTS = 2
"""Beside those that are kept: the one that is being written, and as much again for all else that a run leaves."""

MOMENTS = {"adam": 2, "adamw": 2, "sgd": 1}
"""Tensors of each parameter's size that an optimizer keeps."""
STEP_BYTES = {"adam": 4, "adamw": 4, "sgd": 0}
"""That it counts a parameter's steps in."""


def checkpoint_bytes(config: RunConfig, data: DataSet) -> int:
    """Return the bytes of the tensors in a checkpoint, at the largest model that the run becomes."""
    return max(_bytes_at(config.at(at), data) for at in (0, *config.changes))


def _bytes_at(config: RunConfig, data: DataSet) -> int:
    """Return the bytes of what ``State.tensors`` lists, without making any of it."""
    with torch.device("meta"):
        objective = build_objective(config, data.shape, data.num_classes)
    nets, optimizer = objective.nets, config.optim.name
    weights = [tensor for net in nets.values() for tensor in net.state_dict().values()]
    if config.ema.half_life_samples:
        weights += [tensor for name in objective.inference for tensor in nets[name].state_dict().values()]
    trained = [weight for phase in objective.phases for name in phase.trains for weight in nets[name].parameters()]
    moments = MOMENTS[optimizer] * sum(map(_size, trained)) + STEP_BYTES[optimizer] * len(trained)
    return sum(map(_size, weights)) + moments


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def refuse_little_space(path: Path, config: RunConfig, data: DataSet) -> None:
    """Refuse a run whose checkpoints do not fit beside each other.

    Args:
        path: of the run, which need not exist yet. What its checkpoints take up already is theirs.
        config: of the run.
        data: its data set.

    Raises:
        StorageError: with the arithmetic.
    """
    every, best = config.checkpoint.every_samples, config.checkpoint.keep_best is not None
    made = 1 + (config.duration_samples // every if every else 0)
    kept = min(config.checkpoint.keep, made) + best
    each = checkpoint_bytes(config, data)
    folder = path / "checkpoints"
    taken = sum((folder / name / TENSORS).stat().st_size for name in directories(folder) if _holds(folder / name))
    needed = each * (kept + OTHER_CHECKPOINTS) - taken
    there = next(above for above in (path, *path.parents) if above.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise StorageError(
            f"{there} has {_in_words(free)} free, and the run needs {_in_words(needed)}: {kept + OTHER_CHECKPOINTS}"
            f" checkpoints of {_in_words(each)} ({kept} kept, {OTHER_CHECKPOINTS} for what is being written and the"
            f" rest){f', less {_in_words(taken)} that it has' if taken else ''}; make room, choose another --out, or a"
            " smaller checkpoint.keep"
        )


def _holds(folder: Path) -> bool:
    return (folder / TENSORS).is_file()


def _in_words(num_bytes: float) -> str:
    for unit in ("KiB", "MiB"):
        num_bytes /= 1024
        if num_bytes < 1024:
            return f"{num_bytes:.1f} {unit}"
    return f"{num_bytes / 1024:,.1f} GiB"
