"""Carrying out a run, whoever launched it: find the newest checkpoint, train from there, record every tick."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from shoal.checkpoint import Checkpoint
from shoal.errors import ShoalError
from shoal.files import CANNOT_WRITE
from shoal.loop import Tick, train
from shoal.memory import keep_freed_memory
from shoal.recorder import Recorder, Sink
from shoal.run import Run
from shoal.world import World


class StorageError(ShoalError):
    """The run directory cannot be written."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        samples: the clock at its end.
        stopped: whether it was asked to stop before its duration.
    """

    samples: int
    stopped: bool


def execute(
    run: Run,
    world: World,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    sinks: Callable[[int], Sequence[Sink]] = lambda samples: (),
    on_tick: Callable[[Tick], None] = lambda tick: None,
) -> Outcome:
    """Train a run to its duration or until it is asked to stop; every worker calls this.

    Args:
        run: what to train.
        world: the workers that train together.
        should_stop: asked at every step on every worker; one yes stops all.
        sinks: makes, on the first worker, what else shows the ticks, given the sample that the run goes on from.
        on_tick: called on every worker after a tick is recorded.

    Raises:
        ShoalError: what the user can mend; the same on every worker.
    """
    prepare(world.device)
    failure: ShoalError | None = None

    def ask() -> bool:
        if failure is not None:
            raise failure
        return should_stop()

    resume = _agree_on_checkpoint(run, world)
    samples = resume.samples if resume else 0

    def begin() -> Recorder | None:
        with storage_errors(run.path):
            return Recorder(run, samples=samples, sinks=sinks(samples)) if world.first else None

    with ExitStack() as stack:
        recorder = world.together(begin)
        if recorder:
            stack.enter_context(recorder)
        for tick in train(run, world, resume=resume, should_stop=ask):
            samples = tick.samples
            try:
                with storage_errors(run.path):
                    if recorder:
                        recorder.record(tick)
            except StorageError as error:
                # Kept for the next vote, so that every worker leaves the loop together.
                failure = failure or error
            on_tick(tick)
    if failure is not None:
        raise failure
    return Outcome(samples, stopped=samples < run.config.duration_samples)


def prepare(device: torch.device) -> None:
    """Set up this process for training on a device."""
    keep_freed_memory()
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True  # or a resumed run would differ in its last bits


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Say what a full or read-only disk means to the user; any other trouble is raised as it is.

    Raises:
        StorageError: writing below ``path`` was refused.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise StorageError(
            f"cannot write {error.filename or path}: {error.strerror}; make room or give another --out."
            " --resume goes on from the last whole checkpoint"
        ) from error


def _agree_on_checkpoint(run: Run, world: World) -> Checkpoint | None:
    """Return the first worker's choice of checkpoint on all: shared storage may show the others an older listing."""
    return world.first_says(run.newest_checkpoint)
