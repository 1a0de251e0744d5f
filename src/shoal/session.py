"""A run in memory: what `train` advances tick by tick, and what becomes another model on the way."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from shoal import warm_start
from shoal.checkpoint import Checkpoint, Saver
from shoal.config import RunConfig
from shoal.data import DataSet, Stream, check_state
from shoal.data.quarantine import QuarantinedBlock
from shoal.divergence import refuse_divergence
from shoal.engine import Engine
from shoal.errors import DamagedBlockError, ShoalError
from shoal.meter import Meter
from shoal.noise import Noise
from shoal.objectives import Batch, Objective
from shoal.pixels import to_float
from shoal.render import Pictures
from shoal.schedule import due
from shoal.state import State, build_objective
from shoal.storage.location import Location
from shoal.transplant import transplant
from shoal.worker_stats import Stopwatch, WorkerStats, shares
from shoal.world import World

if TYPE_CHECKING:
    from shoal.quality.monitor import Monitor

GO_ON, QUARANTINE, STOP, FAIL = 0, 1, 2, 3
"""What a worker votes for at each step; the largest wins. Who stops leaves damage in the next batch to whoever goes on
from there and meets it again, in that same batch."""

TRANSPLANT_IMAGES = 2_000
"""Of the training split, for the statistics of the codes that a smaller latent keeps."""


@dataclass(frozen=True)
class Tick:
    """A point of the sample clock at which the run has something to say.

    Attributes:
        samples: images seen by the whole world.
        scalars: measures by name, means since the last tick, the same on every rank.
        images: pictures by name, uint8 [H, W, C]; on the first rank only.
        save: writes a checkpoint of this very sample into a directory, before the next step, unless it is copied; on
            the first rank, when one is due.
        parts: for measures that are means over images, each image's value by name, float64 [n] on the CPU.
        quarantined: damaged blocks that are not read, the same on every rank.
        workers: what each worker did with its time since the last tick, the same on every rank.
        saves: whether a checkpoint is due, the same on every rank.
        last: whether no step follows; what is left is to be written.
    """

    samples: int
    scalars: Mapping[str, float]
    images: Mapping[str, np.ndarray]
    save: Saver | None
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    quarantined: Sequence[QuarantinedBlock] = ()
    workers: Sequence[WorkerStats] = ()
    saves: bool = False
    last: bool = False


class Session:
    """Networks, optimizers, clock and data of a run, held by every worker of a world alike.

    Args:
        config: what to learn, of this stretch of the run.
        data: the data set's directory, here or at a URI.
        world: the workers that train together; every one of them holds a session and calls the same methods.
        tensors: what to go on from, as ``State.tensors`` names them; None: fresh weights.
        samples: the clock to go on at.
        source: whose weights a fresh run begins with.
        stream: the state of the data's order that belongs to ``tensors``, to be checked against the data set; its
            quarantine goes on.
        quarantine: whether training goes on without a block of rows that is damaged. Without, it ends with a checkpoint
            and the error, as damage in images that are shown or measured always does.
        on_progress: called while it measures, which may take many steps' time.

    Raises:
        ShoalError: the configuration, the tensors and the data set do not fit together.
    """

    def __init__(
        self,
        config: RunConfig,
        data: Path | Location,
        world: World,
        *,
        tensors: Callable[[], Mapping[str, Tensor]] | None = None,
        samples: int = 0,
        source: Checkpoint | None = None,
        stream: Mapping[str, Any] | None = None,
        quarantine: bool = False,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self._on_progress = on_progress
        self.world = world
        self._rows = world.slice(config.batch)
        self._meter = Meter(world)
        self._stopwatch = Stopwatch(world)
        self._settled = False
        self._quarantines = world.first_says(lambda: quarantine)  # or one would leave out what ends the run elsewhere
        self._quarantined: Sequence[Sequence[int]] = stream.get("quarantine", ()) if stream else ()

        def prepare() -> DataSet:
            opened = DataSet.open(data)
            if stream is not None:
                check_state(stream, opened, config.data.balance)
            return opened

        self.data = world.together(prepare)
        self._pictures: Pictures | None = None
        self._monitor: Monitor | None = None
        self._stream: Stream | None = None
        self._assemble(tensors and tensors(), samples, source)

    @property
    def samples(self) -> int:
        """Images seen by the whole world."""
        return self._state.samples

    @property
    def objective(self) -> Objective:
        """The model as it is shown and measured: on the averaged weights, where an average is kept."""
        return self._objective.using(self._state.ema)

    def become(self, config: RunConfig, tensors: Mapping[str, Tensor], *, samples: int, made_by: RunConfig) -> None:
        """Turn into another model: its tensors, under a configuration that may differ in whatever may change.

        Where the size of the latent differs, the model is resized by ``transplant``. The data go on where the clock
        says: images and noise are those of ``samples``, whoever the weights belonged to.

        Args:
            config: to go on with.
            tensors: on the CPU, as ``State.tensors`` names them.
            samples: the clock to go on at, between two batches.
            made_by: the configuration of the tensors.

        Raises:
            ConfigError: networks that differ in more than the size of the latent.
        """
        if config.nets != made_by.nets:
            # By one worker for all: another processor may round otherwise, and DDP would not notice in the optimizers.
            tensors = self.world.first_says(partial(self._resized, dict(tensors), made_by, config, samples))
        self.config = config
        self._assemble(tensors, samples, None)

    def adapt(self, config: RunConfig) -> None:
        """Go on with the same model under another configuration."""
        if config != self.config:
            self.become(config, self.tensors(), samples=self.samples, made_by=self.config)

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of all tensors, on the CPU."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._state.tensors().items()}

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint says beside the tensors: the keywords of ``checkpoint.write``."""
        assert self._stream is not None
        return {
            "samples": self._state.samples,
            "batches": self._state.batches,
            "shape": self.data.shape,
            "num_classes": self.data.num_classes,
            "stream": self._stream.state(),
            "config": self.config.model_dump(mode="json"),
        }

    def advance(
        self, until: int, *, should_stop: Callable[[], bool] = lambda: False, ends: bool = True
    ) -> Generator[Tick, None, bool]:
        """Train to the first clock at or past ``until``, yielding on every rank at the same clock values.

        Args:
            until: samples.
            should_stop: asked at every step on every rank. When any says yes, the step is finished and a last tick
                comes at that very sample, with a checkpoint.
            ends: whether there is a last tick at ``until``, with measures, pictures and a checkpoint.

        Returns:
            Whether it was asked to stop, which it may be at ``until`` itself.

        Raises:
            RunError: the loss is no longer finite.
            DataError: rows that are damaged, where they are not to be left out, or too few are left.
        """
        world, state = self.world, self._state
        stream = self._stream
        assert stream is not None
        told_at = state.samples
        self._stopwatch.start(stream)
        if state.samples < until and (refusal := self._ready_together()):
            raise refusal
        while state.samples < until:
            config = self.config
            raw = next(stream)
            choice, problem = GO_ON, None
            try:
                choice = STOP if should_stop() else GO_ON
                if state.samples + config.batch < until:
                    stream.ready()  # the batch after this one: what fails there is voted on before anyone waits for it
            except ShoalError as error:
                choice, problem = max(choice, QUARANTINE if self._may_leave_out(error) else FAIL), error
            vote = world.vote(choice)

            batch = Batch(
                images=to_float(raw.images.to(world.device, non_blocking=True), config.data.range),
                labels=None if raw.labels is None else raw.labels.to(world.device, non_blocking=True),
                index=state.batches,
                rows=self._rows,
                size=config.batch,
                sum=world.sum,
            )
            noise = Noise(config.seed, state.batches, config.batch, self._rows, world.device)
            if not self._settled:
                self._engine.settle(batch, noise)
                self._settled = True
            before = state.samples
            self._meter.add(self._engine.step(batch, noise), self._rows.stop - self._rows.start)

            answer = vote.result()
            if answer == QUARANTINE:
                problem = self._ready_together()
                answer = FAIL if problem else GO_ON
            elif choice != FAIL:
                problem = None
            done = state.samples >= until
            last = answer != GO_ON or (done and ends)
            shows = config.report.images_every_samples > 0 and (
                last or due(config.report.images_every_samples, before, state.samples)
            )
            # Not when it is asked to stop before its end: whoever asks may not wait for long.
            measures = (done and ends and answer != FAIL) or (
                answer == GO_ON and due(config.report.quality_every_samples, before, state.samples)
            )
            saves = (
                last
                or due(config.checkpoint.every_samples, before, state.samples)
                or (measures and config.checkpoint.keep_best is not None)
            )
            if saves or shows or measures or due(config.report.every_samples, before, state.samples):
                trained = state.samples - told_at
                yield self._tick(stream, trained, shows=shows, measures=measures, saves=saves, last=last)
                told_at = state.samples
                self._stopwatch.start(stream)
            if last:
                if answer == FAIL:
                    world.raise_first(problem)
                return answer == STOP
        return False

    def _ready_together(self) -> ShoalError | None:
        """Wait until every rank has read its rows of the next batch.

        Damaged blocks that any rank met go into quarantine on all of them, from that batch on, until no rank meets
        another one: rows that take the place of others may be damaged too. Which blocks these are depends neither on
        who met them first nor on how many ranks there are.

        Returns:
            What keeps some rank from the batch, the same on every rank.
        """
        stream = self._stream
        assert stream is not None
        while True:
            try:
                stream.ready()
                problem = None
            except ShoalError as error:
                problem = error
            found = [error for error in self.world.gather(problem) if error is not None]
            beyond = [error for error in found if not self._may_leave_out(error)]
            if beyond or not found:
                return beyond[0] if beyond else None
            try:
                stream.quarantine({error.block for error in found if isinstance(error, DamagedBlockError)})
            except ShoalError as error:  # the same on every rank: all add the same blocks to the same ones
                return error

    def _may_leave_out(self, problem: ShoalError) -> bool:
        return self._quarantines and isinstance(problem, DamagedBlockError)

    def close(self) -> None:
        """End the thread that reads ahead."""
        if self._stream is not None:
            self._stream.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _tick(self, stream: Stream, trained: int, *, shows: bool, measures: bool, saves: bool, last: bool) -> Tick:
        """Return what there is to say, ``trained`` samples after the stopwatch was started."""
        world, state = self.world, self._state
        scalars: dict[str, float] = self._meter.take()
        refuse_divergence(scalars, state)
        workers = self._stopwatch.read(stream, trained // self.config.batch * (self._rows.stop - self._rows.start))
        rate = {"speed/samples_per_sec": trained / mean(worker.sec for worker in workers), **shares(workers)}
        quarantined = stream.quarantined
        if quarantined:
            scalars["data/quarantined_blocks"] = float(len(quarantined))
            scalars["data/quarantined_rows"] = float(sum(block.rows for block in quarantined))
        parts: Mapping[str, Tensor] = {}
        if self._monitor and measures:
            scalars |= self._monitor.measure()
            parts = self._monitor.parts
        return Tick(
            samples=state.samples,
            scalars={**scalars, **self._engine.learning_rates(), **rate},
            images=self._pictures.draw() if self._pictures and shows else {},
            save=Saver(state.tensors(), self.facts()) if world.first and saves else None,
            parts=parts,
            quarantined=quarantined,
            workers=workers,
            saves=saves,
            last=last,
        )

    def _assemble(self, tensors: Mapping[str, Tensor] | None, samples: int, source: Checkpoint | None) -> None:
        """Build networks, optimizers and engine for the configuration, fill them, and stand at a clock."""
        config, world = self.config, self.world

        def build() -> tuple[Objective, State]:
            objective = build_objective(config, self.data.shape, self.data.num_classes).to(world.device)
            if source is not None:
                warm_start.fill(objective, source)  # before the state is made, so that the average starts there too
            state = State.fresh(objective, config)
            if tensors is not None:
                state.load_tensors(tensors)
            state.samples, state.batches = samples, samples // config.batch
            return objective, state

        self._objective, self._state = world.together(build)
        self._engine = Engine(self._objective, self._state, config, world)
        self._settled = False
        # Together, since both read images: damage that only the first worker meets must not leave the others waiting.
        self._pictures = world.together(self._new_pictures)
        self._monitor = world.together(self._new_monitor)
        if self._stream is None or self._stream.position != samples:
            self._open_stream(samples)

    def _new_pictures(self) -> "Pictures | None":
        if not (self.world.first and self.config.report.images_every_samples):
            return None
        return Pictures(self._objective, self._state, self.data, self.config, self.world.device)

    def _new_monitor(self) -> "Monitor | None":
        if not self.config.report.quality_every_samples:
            return None
        from shoal.quality.monitor import Monitor  # its libraries take 1.5 s to import

        shown = self.objective
        if self._monitor is not None and self._monitor.fits(self.config):
            return self._monitor.following(shown, self.config)
        return Monitor(shown, self.config, self.data, self.world, on_progress=self._on_progress)

    def _open_stream(self, samples: int) -> None:
        if self._stream is not None:
            self._quarantined = self._stream.state().get("quarantine", ())
            self._stream.close()
        config = self.config
        self._stream = Stream(
            self.data,
            split=config.data.split,
            batch=config.batch,
            seed=config.seed,
            rows=self._rows,
            position=samples,
            pin_memory=self.world.device.type == "cuda",
            shuffle_window_blocks=config.data.window_blocks,
            balance=config.data.balance,
            quarantine=self._quarantined,
        )

    def _resized(self, tensors: dict[str, Tensor], old: RunConfig, new: RunConfig, samples: int) -> dict[str, Tensor]:
        split = new.data.split
        images = torch.from_numpy(self.data.rows(split, 0, min(TRANSPLANT_IMAGES, self.data.num_rows(split))))
        shape, num_classes = self.data.shape, self.data.num_classes
        return transplant(tensors, old, new, shape, num_classes, images, key=f"{new.seed}/transplant/{samples}")
