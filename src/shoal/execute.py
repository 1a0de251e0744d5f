"""Carrying out a run, whoever launched it: find the newest checkpoint, train from there, record every tick."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from shoal import remote_checkpoint
from shoal.checkpoint import STATE, TENSORS, Checkpoint
from shoal.errors import ShoalError, StorageError
from shoal.files import CANNOT_WRITE
from shoal.loop import Tick, train
from shoal.memory import keep_freed_memory
from shoal.recorder import Recorder, Sink
from shoal.run import Run
from shoal.run_files import CHECKPOINTS, METRICS
from shoal.uploader import Uploader
from shoal.world import World


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
    quarantine: bool = False,
    sinks: Callable[[int], Sequence[Sink]] = lambda samples: (),
    on_tick: Callable[[Tick], None] = lambda tick: None,
) -> Outcome:
    """Train a run to its duration or until it is asked to stop; every worker calls this.

    Args:
        run: what to train.
        world: the workers that train together.
        should_stop: asked at every step on every worker; one yes stops all.
        quarantine: whether to go on without rows that turn out to be damaged.
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
        if uploader is not None and uploader.failure is not None:
            raise uploader.failure
        return should_stop()

    resume = _agree_on_checkpoint(run, world)
    samples = resume.samples if resume else 0

    def begin() -> tuple[Recorder | None, Uploader | None]:
        if not world.first:
            return None, None
        with storage_errors(run.path):
            recorder = Recorder(run, samples=samples, sinks=sinks(samples))
        return recorder, Uploader(run, samples) if run.mirror else None

    with ExitStack() as stack:
        recorder, uploader = world.together(begin)
        if uploader:
            stack.enter_context(uploader)  # left last, when every file is closed
        if recorder:
            stack.enter_context(recorder)
        for tick in train(run, world, resume=resume, should_stop=ask, quarantine=quarantine):
            samples = tick.samples
            try:
                with storage_errors(run.path):
                    if recorder:
                        recorder.record(tick)
                    if uploader:
                        uploader.look()
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
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))  # Ray says how many after torch was imported
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
    """Return the first worker's choice of checkpoint on all: shared storage may show the others an older listing.

    Of a run at a URI, each of the others fetches that very one, unless it is on the same node.
    """
    chosen = world.first_says(lambda: _choose(run))
    if run.mirror is None or chosen is None:
        return chosen and chosen[0]
    found, state = chosen

    def follow() -> Checkpoint:
        if world.first:
            return found
        assert run.mirror is not None
        home = run.mirror.home / CHECKPOINTS / found.path.name
        with run.mirror.alone():
            return remote_checkpoint.fetch(home, run.checkpoints / found.path.name, (home / TENSORS).size(), state)

    return world.together(follow)


def _choose(run: Run) -> tuple[Checkpoint, bytes] | None:
    """Return the newest checkpoint and its ``state.json``; one that never reached the URI of its run is there then."""
    found = run.find_checkpoint()
    if run.mirror is not None:
        if found.at_home:
            run.mirror.pull([METRICS])  # or the copy's rows, which are as new as its checkpoint
        elif found.checkpoint is not None:
            remote_checkpoint.publish(found.checkpoint.path, run.mirror.home / CHECKPOINTS / found.checkpoint.path.name)
    if found.checkpoint is None:
        return None
    return found.checkpoint, (found.checkpoint.path / STATE).read_bytes()
