"""Carrying out a run, whoever launched it: find the newest checkpoint, train from there, record every tick."""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from shoal.errors import FencedError, ShoalError
from shoal.incarnation import begin
from shoal.loop import Tick, train
from shoal.memory import keep_freed_memory
from shoal.recorder import Sink
from shoal.run import Run
from shoal.run_writer import RunWriter
from shoal.storage_trouble import storage_errors
from shoal.world import World

__all__ = ["Outcome", "execute", "prepare", "storage_errors"]

_log = logging.getLogger("shoal.run")


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
    on_trouble: Callable[[str], None] = _log.warning,
    on_progress: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train a run to its duration or until it is asked to stop; every worker calls this.

    Trouble with the run's storage is outlived for as long as `shoal.storage_trouble` is patient. Where another process
    starts on the same run, that one has it, and this one leaves.

    Args:
        run: what to train.
        world: the workers that train together.
        should_stop: asked at every step on every worker; one yes stops all.
        quarantine: whether to go on without rows that turn out to be damaged.
        sinks: makes, on the first worker, what else shows the ticks, given the sample that the run goes on from.
        on_tick: called on every worker after a tick is recorded.
        on_trouble: told on the first worker, in a sentence, what the storage refuses and when that is over.
        on_progress: called on every worker at every step, while it measures, and while the first one waits for its
            storage.

    Raises:
        ShoalError: what the user can mend; the same on every worker.
    """
    prepare(world.device)
    incarnation = begin(run, world)
    samples = incarnation.samples
    if incarnation.over:
        return Outcome(samples, stopped=False)
    failure: ShoalError | None = None

    def start_writing() -> RunWriter | None:
        if not world.first:
            return None
        return RunWriter(
            run, incarnation, workers=world.size, sinks=sinks, on_trouble=on_trouble, on_progress=on_progress
        )

    def ask() -> bool:
        on_progress()
        if failure is not None:
            raise failure
        if writer:
            writer.refuse_trouble()
        return should_stop()

    def make_way() -> bool:
        return writer is None or writer.make_way()

    def finish() -> bool:
        if failure is not None:
            raise failure
        return writer is None or writer.finish()

    def by_rounds(done: Callable[[], bool]) -> None:
        """Wait until something is done by the first worker; between two rounds, all tell that they are alive."""
        while not world.first_says(done):
            on_progress()

    writer = world.together(start_writing)
    try:
        with writer or nullcontext():
            for tick in train(
                run,
                world,
                resume=incarnation.checkpoint,
                should_stop=ask,
                quarantine=quarantine,
                on_progress=on_progress,
            ):
                samples = tick.samples
                if tick.saves:
                    by_rounds(make_way)
                try:
                    if writer:
                        writer.record(tick)
                except ShoalError as error:
                    # Kept for the next vote, so that every worker leaves the loop together.
                    failure = failure or error
                on_tick(tick)
            by_rounds(finish)
    except FencedError:
        raise  # how the run ends is told by whoever goes on with it
    except ShoalError as error:
        if writer:
            writer.end("failed", samples, str(error))
        raise
    outcome = Outcome(samples, stopped=samples < run.config.duration_samples)
    if writer:
        writer.end("stopped" if outcome.stopped else "finished", samples)
    return outcome


def prepare(device: torch.device) -> None:
    """Set up this process for training on a device."""
    keep_freed_memory()
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))  # Ray says how many after torch was imported
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True  # or a resumed run would differ in its last bits
