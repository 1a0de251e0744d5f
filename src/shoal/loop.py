"""The training loop: a generator that does not know who runs it."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
import torch

from shoal import checkpoint
from shoal.checkpoint import Checkpoint
from shoal.config import RunConfig, build_config
from shoal.data import DataSet, Stream, check_state
from shoal.engine import Engine
from shoal.errors import ConfigError, RunError, ShoalError
from shoal.meter import Meter
from shoal.noise import Noise
from shoal.objectives import Batch, Objective, build
from shoal.pixels import to_float
from shoal.render import Pictures
from shoal.run import Run, refuse_changes
from shoal.schedule import due
from shoal.state import State
from shoal.world import World

GO_ON, STOP, FAIL = 0, 1, 2
"""What a worker votes for at each step; the largest wins."""


@dataclass(frozen=True)
class Tick:
    """A point of the sample clock at which the run has something to say.

    Attributes:
        samples: images seen by the whole world.
        scalars: measures by name, means since the last tick, the same on every rank.
        images: pictures by name, uint8 [H, W, C]; on the first rank only.
        save: writes a checkpoint of this very sample into a directory; on the first rank, when one is due.
    """

    samples: int
    scalars: Mapping[str, float]
    images: Mapping[str, np.ndarray]
    save: Callable[[Path], None] | None


def train(
    run: Run,
    world: World,
    *,
    resume: Checkpoint | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Tick]:
    """Train, yielding on every rank at the same clock values.

    Args:
        run: what to learn, and from which data set.
        world: the workers that train together; every one of them iterates.
        resume: where to go on. A resumed run equals one that never stopped, bit for bit at the same world size.
        should_stop: asked at every step on every rank. When any says yes, the step is finished and a last tick comes
            at that very sample, with a checkpoint.

    Raises:
        ConfigError: the configuration does not fit the data set or the number of workers.
        DataError: the data set is damaged, or is not the one that the checkpoint was trained on.
        RunError: the loss is no longer finite.
    """
    config = run.config
    rows = world.slice(config.batch)

    def prepare() -> tuple[DataSet, Objective, State]:
        data = DataSet.open(run.data)
        check(config, data, world.size)
        objective = build_objective(config, data.shape, data.num_classes).to(world.device)
        state = State.fresh(objective, config)
        if resume is not None:
            check_resume(resume, config, data)
            state.load_tensors(resume.tensors())
            state.samples, state.batches = resume.samples, resume.batches
        return data, objective, state

    data, objective, state = world.together(prepare)
    engine = Engine(objective, state, config, world)
    meter = Meter(world)
    draws = world.first and config.report.images_every_samples > 0
    # Together, since it reads images: damage that only the first worker meets must not leave the others waiting.
    pictures = world.together(lambda: Pictures(objective, state, data, config, world.device) if draws else None)
    settled = False
    told_at, since = state.samples, time.perf_counter()
    with Stream(
        data,
        split=config.data.split,
        batch=config.batch,
        seed=config.seed,
        rows=rows,
        position=state.samples,
        pin_memory=world.device.type == "cuda",
        shuffle_window_blocks=config.data.window_blocks,
    ) as stream:
        world.together(stream.ready)
        while state.samples < config.duration_samples:
            raw = next(stream)
            choice, problem = GO_ON, None
            try:
                choice = STOP if should_stop() else GO_ON
                if state.samples + config.batch < config.duration_samples:
                    stream.ready()  # the batch after this one: what fails there is voted on before anyone waits for it
            except ShoalError as error:
                choice, problem = FAIL, error
            vote = world.vote(choice)

            batch = Batch(
                images=to_float(raw.images.to(world.device, non_blocking=True), config.data.range),
                labels=None if raw.labels is None else raw.labels.to(world.device, non_blocking=True),
                index=state.batches,
                rows=rows,
                size=config.batch,
                sum=world.sum,
            )
            noise = Noise(config.seed, state.batches, config.batch, rows, world.device)
            if not settled:
                engine.settle(batch, noise)
                settled = True
            before = state.samples
            meter.add(engine.step(batch, noise), rows.stop - rows.start)

            answer = vote.result()
            last = answer != GO_ON or state.samples >= config.duration_samples
            saves = last or due(config.checkpoint.every_samples, before, state.samples)
            shows = last or due(config.report.images_every_samples, before, state.samples)
            if saves or shows or due(config.report.every_samples, before, state.samples):
                scalars = meter.take()
                refuse_divergence(scalars, state)
                # The mean over the workers, so that every scalar is the same on all of them.
                elapsed_sec = world.sum(torch.tensor(time.perf_counter() - since, device=world.device)) / world.size
                speed = {"speed/samples_per_sec": (state.samples - told_at) / float(elapsed_sec)}
                yield Tick(
                    samples=state.samples,
                    scalars={**scalars, **engine.learning_rates(), **speed},
                    images=pictures.draw() if pictures and shows else {},
                    save=saver(state, stream, data, config) if world.first and saves else None,
                )
                told_at, since = state.samples, time.perf_counter()
            if last:
                if answer == FAIL:
                    world.raise_first(problem)
                return


def check(config: RunConfig, data: DataSet, workers: int) -> None:
    """Refuse what cannot run, before any worker starts.

    Raises:
        ConfigError: too small or too large a batch, or networks that cannot make such images.
        DataError: no such split.
    """
    if config.batch < workers:
        raise ConfigError(
            f"batch {config.batch} cannot feed {workers} workers (one image each at least); use batch >= {workers},"
            f" or at most {config.batch} workers"
        )
    rows = data.num_rows(config.data.split)
    with torch.device("meta"):  # shapes only: costs no memory
        build_objective(config, data.shape, data.num_classes)
    if config.batch > rows:
        raise ConfigError(
            f"batch {config.batch} is more than the {rows} images of split '{config.data.split}'; use batch <= {rows}"
        )


def check_resume(resume: Checkpoint, config: RunConfig, data: DataSet) -> None:
    """Refuse to go on from a checkpoint with another data set, or with a key changed that may not change.

    Raises:
        DataError: the data set has another fingerprint.
        RunError: names the key.
    """
    check_state(resume.stream, data)
    refuse_changes(build_config(resume.config), config)


def build_objective(config: RunConfig, shape: tuple[int, int, int], num_classes: int = 0) -> Objective:
    """Build the configured objective with the weights that its seed gives."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build(config.objective, config.nets, shape, config.data.range, num_classes)


def saver(state: State, stream: Stream, data: DataSet, config: RunConfig) -> Callable[[Path], None]:
    """Return what writes the present state into a directory; call it before the next step."""
    return lambda path: checkpoint.write(
        path,
        state.tensors(),
        samples=state.samples,
        batches=state.batches,
        shape=data.shape,
        num_classes=data.num_classes,
        stream=stream.state(),
        config=config.model_dump(mode="json"),
    )


def refuse_divergence(scalars: Mapping[str, float], state: State) -> None:
    """Stop a run whose losses or weights are no longer numbers, before it overwrites good checkpoints.

    The weights are looked at as well: the step that destroys them can still have a finite loss.
    """
    lost = [f"{name} is {value}" for name, value in scalars.items() if not isfinite(value)]
    lost += [
        f"a weight of the {name} is not finite"
        for name, net in state.nets.items()
        if not bool(torch.stack([weight.isfinite().all() for weight in net.parameters()]).all())
    ]
    if lost:
        raise RunError(
            f"{lost[0]} at sample {state.samples}; the run has diverged. Lower optim.lr or set optim.clip;"
            " --resume goes on from the last checkpoint before it"
        )
