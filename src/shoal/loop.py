"""The training loop: a generator that does not know who runs it."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from shoal import checkpoint, warm_start
from shoal.checkpoint import Checkpoint
from shoal.config import RunConfig, build_config
from shoal.data import DataSet, Stream, check_state
from shoal.engine import Engine
from shoal.errors import ConfigError, DataError, RunError, ShoalError
from shoal.meter import Meter
from shoal.noise import Noise
from shoal.objectives import Batch, Objective
from shoal.pixels import to_float
from shoal.quality.held_out import num_measured
from shoal.render import Pictures
from shoal.run import Run, refuse_changes
from shoal.schedule import due
from shoal.state import State, build_objective
from shoal.world import World

if TYPE_CHECKING:
    from shoal.quality.monitor import Monitor

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

    # The first worker chooses for all: another run may be training still, and shared storage shows the others less.
    source = world.first_says(lambda: warm_start.announced(run)) if resume is None and config.init_from else None

    def prepare() -> tuple[DataSet, Objective, State]:
        data = DataSet.open(run.data)
        check(config, data, world.size)
        objective = build_objective(config, data.shape, data.num_classes).to(world.device)
        if source is not None:
            warm_start.fill(objective, source)  # before the state is made, so that the average starts there too
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
    monitor = world.together(lambda: _monitor(objective, state, data, config, world))
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
            # Not when it is asked to stop before its end: whoever asks may not wait for long.
            measures = answer == GO_ON and (
                state.samples >= config.duration_samples
                or due(config.report.quality_every_samples, before, state.samples)
            )
            if saves or shows or measures or due(config.report.every_samples, before, state.samples):
                scalars: dict[str, float] = meter.take()
                refuse_divergence(scalars, state)
                # The mean over the workers, so that every scalar is the same on all of them.
                elapsed_sec = world.sum(torch.tensor(time.perf_counter() - since, device=world.device)) / world.size
                speed = {"speed/samples_per_sec": (state.samples - told_at) / float(elapsed_sec)}
                if monitor and measures:
                    scalars |= monitor.measure()
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


def _monitor(objective: Objective, state: State, data: DataSet, config: RunConfig, world: World) -> "Monitor | None":
    if not config.report.quality_every_samples:
        return None
    from shoal.quality.monitor import Monitor  # its libraries take 1.5 s to import

    return Monitor(objective.using(state.ema), config, data, world)


def check(config: RunConfig, data: DataSet, workers: int) -> list[str]:
    """Refuse what cannot run, before any worker starts; return what will run but badly, for the user to read.

    Raises:
        ConfigError: too small or too large a batch, networks that cannot make such images, or more images to measure
            than there are.
        DataError: no such split, or images without the labels that the objective needs.
    """
    if config.batch < workers:
        raise ConfigError(
            f"batch {config.batch} cannot feed {workers} workers (one image each at least); use batch >= {workers},"
            f" or at most {config.batch} workers"
        )
    rows = data.num_rows(config.data.split)
    with torch.device("meta"):  # shapes only: costs no memory
        objective = build_objective(config, data.shape, data.num_classes)
    if config.batch > rows:
        raise ConfigError(
            f"batch {config.batch} is more than the {rows} images of split '{config.data.split}'; use batch <= {rows}"
        )
    if objective.needs_labels:
        refuse_unlabelled(data, config.data.split)
    if config.report.quality_every_samples:
        num_measured(config, data)
    return objective.cautions(config.batch)


def refuse_unlabelled(data: DataSet, split: str) -> None:
    """Refuse a split in which some image has no label.

    Raises:
        DataError: with their number.
    """
    labels = data.labels(split)
    without = data.num_rows(split) if labels is None else int((labels < 0).sum())
    if without:
        raise DataError(
            f"{without:,} of the {data.num_rows(split):,} images of split '{split}' in {data.path} have no label, and"
            " objective.conditional needs one for each; import them with labels, or set objective.conditional=false"
        )


def check_resume(resume: Checkpoint, config: RunConfig, data: DataSet) -> None:
    """Refuse to go on from a checkpoint with another data set, or with a key changed that may not change.

    Raises:
        DataError: the data set has another fingerprint.
        RunError: names the key.
    """
    check_state(resume.stream, data)
    refuse_changes(build_config(resume.config), config)


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
        if not bool(torch.stack([weight.isfinite().all() for weight in _floats(net)]).all())
    ]
    if lost:
        raise RunError(
            f"{lost[0]} at sample {state.samples}; the run has diverged. Lower optim.lr or set optim.clip;"
            " --resume goes on from the last checkpoint before it"
        )


def _floats(net: nn.Module) -> list[torch.Tensor]:
    return [tensor for tensor in (*net.parameters(), *net.buffers()) if tensor.is_floating_point()]
