"""One rank of a member: follows the switchboard's orders, holding the model in memory from one to the next."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train.torch import get_device
from torch import Tensor

from shoal import checkpoint
from shoal.config import RunConfig, build_config
from shoal.errors import CheckpointError, ConfigError, DivergenceError, ShoalError, StorageError
from shoal.execute import prepare, storage_errors
from shoal.recorder import Recorder
from shoal.run import Run
from shoal.run_files import locked
from shoal.session import Session, Tick
from shoal.world import World
from shoal_ray.desk import FlagWatch
from shoal_ray.population.directory import SearchDirectory
from shoal_ray.population.journal import PREDECESSOR_SEC
from shoal_ray.population.keeper import Keeper
from shoal_ray.population.orders import Become, Leave, Train
from shoal_ray.population.parts import write_parts
from shoal_ray.population.search_config import find_metric
from shoal_ray.population.segments import SegmentWriter
from shoal_ray.population.wire import Wire
from shoal_ray.tensorboard import TensorBoardSink


def newest_of(folder: Path, otherwise: Path) -> Path:
    """Return the newest checkpoint of a folder, verified or not."""
    return next(iter(checkpoint.saved(folder)), otherwise)


class StateLostError(ShoalError):
    """A donor's state is nowhere to be had."""


def worker(settings: Mapping[str, Any]) -> dict[str, Any] | ShoalError:
    """Carry out a member's orders until it is told to leave. A user's error is returned, not raised: no retry."""
    try:
        device = get_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        prepare(device)
        world = World.joined(device)
        directory = SearchDirectory.open(Path(settings["search"]))
        wire = Wire(settings["namespace"], settings["member"], settings["incarnation"], world)
        with ExitStack() as stack:
            # One that was cut off from the switchboard, or whose driver was killed a moment ago, may write still.
            held = locked(directory.member(settings["member"]), wait_sec=PREDECESSOR_SEC)
            world.together(lambda: stack.enter_context(held) if world.first else None)
            stack.enter_context(Member(directory, settings["member"], world, wire)).follow()
    except ShoalError as error:
        return error
    return {}


class Member:
    """A model that trains, is measured, and becomes another one.

    Args:
        directory: of the search.
        number: of the member.
        world: its workers.
        wire: to the switchboard.
    """

    def __init__(self, directory: SearchDirectory, number: int, world: World, wire: Wire) -> None:
        self._directory, self._number, self._world, self._wire = directory, number, world, wire
        self._run = Run.open(directory.member(number))
        found = world.first_says(self._run.newest_checkpoint)
        self._values: Mapping[str, Any] = found.notes["values"] if found else Run.facts_of(self._run.path)["values"]
        self._seq = int(found.notes["seq"]) if found else 0
        self._since = int(found.notes["since"]) if found else 0
        config = build_config(found.config) if found else self._run.config
        self._session = Session(
            config,
            directory.data,
            world,
            tensors=found.tensors if found else None,
            samples=found.samples if found else 0,
            stream=found.stream if found else None,
        )
        self._clock = self._session.samples
        self._diverged = False
        self._recorder: Recorder | None = None
        self._keeper = Keeper(directory, number)
        self._decided: float | None = None
        self._exploit_sec: float | None = None
        self._asked: Callable[[], bool] = FlagWatch(wire.should_stop) if world.first else bool
        self._segments = SegmentWriter(self._run, directory.search, self._since, self._values)
        self._failure: StorageError | None = None

    def follow(self) -> None:
        """Carry out one order after another."""
        self._wire.progress(state="waiting", busy=False, samples=self._clock)
        while True:
            match self._wire.next(samples=self._clock, seq=self._seq):
                case Train() as order:
                    self._train(order)
                case Become() as order:
                    self._become(order)
                case Leave():
                    return

    def __enter__(self) -> "Member":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Finish writing."""
        self._keeper.close()
        self._session.close()
        self._stop_recording()

    # --- training -----------------------------------------------------------------------------------------------------

    def _train(self, order: Train) -> None:
        """Train to the end of a generation and report it, or to where it was asked to stop."""
        self._wire.progress(state="training", busy=True, samples=self._clock)
        batch = self._session.config.batch
        end = -(-order.until // batch) * batch
        last: Tick | None = None
        self._world.together(self._begin_recording)
        if not self._diverged:
            try:
                for tick in self._session.advance(order.until, should_stop=self._watch_step):
                    last = tick
                    self._record(tick)
            except DivergenceError:
                self._diverged = True
        if self._diverged:
            self._clock = end
            self._report(order, {}, None, "diverged", 0.0)
            return
        self._clock = self._session.samples
        if self._clock < order.until:  # asked to stop
            self._keep()
            self._wire.progress(state="stopped", busy=False, samples=self._clock)
            return
        assert last is not None
        parts = self._parts_of_fitness(last)
        self._report(order, last.scalars, parts, "trained", last.scalars["speed/samples_per_sec"])

    def _watch_step(self) -> bool:
        if self._decided is not None:
            self._exploit_sec = time.time() - self._decided
            self._decided = None
        if self._failure is not None:
            raise self._failure  # into the next vote, so that all ranks leave together
        return bool(self._asked())

    def _record(self, tick: Tick) -> None:
        self._wire.progress(
            state="training", busy=True, samples=tick.samples, samples_per_sec=tick.scalars["speed/samples_per_sec"]
        )
        if self._recorder:
            try:
                with storage_errors(self._run.path):
                    self._recorder.record(replace(tick, save=None))
            except StorageError as error:
                self._failure = error

    def _parts_of_fitness(self, tick: Tick) -> np.ndarray | None:
        """Return what the fitness' metric is the mean of, signed so that more is better."""
        fitness = self._directory.search.fitness
        values = tick.parts.get(find_metric(fitness.metric, tick.scalars))
        return None if values is None else values.numpy() * (1 if fitness.mode == "max" else -1)

    def _report(
        self, order: Train, metrics: Mapping[str, float], parts: np.ndarray | None, state: str, speed: float
    ) -> None:
        """Publish the state, tell of the generation, and keep it on disk while training goes on."""
        row = {
            "member": self._number,
            "generation": order.generation,
            "samples": self._clock,
            "metrics": dict(metrics),
            "values": dict(self._values),
            "samples_per_sec": speed,
            "state": state,
            "has_parts": parts is not None,
            "exploit_sec": self._exploit_sec,
        }
        self._exploit_sec = None
        # Together, since what fails on the first rank must not leave the others waiting.
        self._world.together(lambda: self._tell(row, parts) if self._world.first else None)

    def _tell(self, row: Mapping[str, Any], parts: np.ndarray | None) -> None:
        if self._failure is not None:
            raise self._failure
        if row["state"] == "diverged":
            self._wire.trained(row, None)
            return
        with storage_errors(self._directory.path):
            if parts is not None:
                write_parts(self._directory, self._number, self._clock, parts)
            tensors, facts = self._session.tensors(), self._facts()
            state = ray.put({"tensors": {name: tensor.numpy() for name, tensor in tensors.items()}, "facts": facts})
            heard, best = self._wire.trained(row, state)
            if heard:  # else another incarnation goes on from what is on disk
                self._keeper.keep(tensors, facts, best=best, row=row)
                self._segments.write(self._clock, row)

    def _keep(self) -> None:
        """Keep what there is in the middle of a generation."""

        def keep() -> None:
            if self._world.first:
                self._keeper.keep(self._session.tensors(), self._facts(), best=None, row=None)

        self._world.together(keep)

    def _facts(self) -> dict[str, Any]:
        notes = {"member": self._number, "seq": self._seq, "since": self._since, "values": dict(self._values)}
        return {**self._session.facts(), "notes": notes}

    # --- taking another's weights -------------------------------------------------------------------------------------

    def _become(self, order: Become) -> None:
        """Turn into the donor with other values; where its state is lost, keep the own one with the new values."""
        self._wire.progress(state="taking over", busy=True, samples=order.samples)
        tensors, made_by, state, source = self._state_for(order)
        config = self._directory.member_config(self._number, order.values, self._session.data)
        self._session.become(config, tensors, samples=order.samples, made_by=made_by)
        moved, self._clock, self._diverged = self._clock != order.samples, order.samples, False
        self._values, self._seq, self._since = order.values, order.seq, order.samples
        self._world.together(lambda: self._note_values(config) if self._world.first else None)
        self._segments = SegmentWriter(self._run, self._directory.search, self._since, self._values)
        if moved:
            self._stop_recording()
        self._decided = order.decided
        seconds = time.time() - order.decided
        self._wire.loaded(
            {"seq": order.seq, "samples": order.samples, "state": state, "source": source, "seconds": seconds}
        )
        self._wire.progress(state="waiting", busy=False, donor=order.donor)

    def _note_values(self, config: RunConfig) -> None:
        with storage_errors(self._run.path):
            facts = Run.facts_of(self._run.path) | {"values": dict(self._values)}
            self._run = replace(self._run, config=config).save(self._directory.data, facts)

    def _state_for(self, order: Become) -> tuple[Mapping[str, Tensor], RunConfig, str, str]:
        """Return the tensors, what made them, which state that is, and where it came from; the same on all ranks."""
        donor, samples = order.donor, order.donor_samples
        folder = self._directory.member(donor) / "checkpoints"
        exact = folder / checkpoint.directory_name(samples)
        for source, find in (
            ("memory", lambda: self._in_memory(donor, samples, patient=False)),
            ("checkpoint", lambda: self._on_disk(exact)),
            ("memory", lambda: self._in_memory(donor, samples, patient=True)),
            ("checkpoint", lambda: self._on_disk(exact)),
            # One rank names the newest for all: the donor may be writing another.
            ("checkpoint", lambda: self._on_disk(self._world.first_says(lambda: newest_of(folder, exact)))),
        ):
            try:
                # Each rank looks for itself; if it is lost to one, all look elsewhere.
                tensors, config, clock = self._world.together(find)
            except StateLostError:
                continue
            return tensors, config, f"{donor}@{clock}", source
        own = self._session
        if self._diverged:
            raise ConfigError(
                f"member {self._number} has diverged, and the state of member {donor} that it was to take is lost;"
                " --resume goes on from what is on disk"
            )
        return own.tensors(), own.config, f"{self._number}@{own.samples}", "own"

    def _in_memory(self, donor: int, samples: int, *, patient: bool) -> tuple[Mapping[str, Tensor], RunConfig, int]:
        published = ray.get(self._wire.board.fetch.remote(donor, samples, patient=patient))
        if published is None:
            raise StateLostError(f"member {donor} has published no state of sample {samples}")
        try:
            state = ray.get(published[0])
        except ray.exceptions.RayError as error:  # its owner died with it
            raise StateLostError(f"the state of member {donor} is lost: {type(error).__name__}") from None
        # What Ray hands out is read-only, and shared.
        tensors = {name: torch.from_numpy(np.array(values)) for name, values in state["tensors"].items()}
        return tensors, build_config(state["facts"]["config"]), samples

    def _on_disk(self, path: Path) -> tuple[Mapping[str, Tensor], RunConfig, int]:
        try:
            found = checkpoint.read(path)
        except CheckpointError as error:
            raise StateLostError(str(error)) from None
        return found.tensors(), build_config(found.config), found.samples

    # --- what is written ----------------------------------------------------------------------------------------------

    def _begin_recording(self) -> None:
        """Open what the first rank writes, at this clock; what tells of a later one is dropped: it comes again."""
        if self._world.first and self._recorder is None:
            with storage_errors(self._run.path):
                sinks: Sequence[TensorBoardSink] = [TensorBoardSink(self._run, self._clock)]
                self._recorder = Recorder(self._run, samples=self._clock, sinks=sinks)

    def _stop_recording(self) -> None:
        if self._recorder:
            self._recorder.__exit__(None, None, None)
            self._recorder = None
