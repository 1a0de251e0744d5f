"""A run by attempts: one group of workers after another, until it is trained, stopped, or lost too often.

Ray Train could replace lost workers itself. It would wait for as many as before although a node is gone, or start over
with as few as it sees in the first moment; and its elastic runs wait a minute for either. Here each group is a run of
Ray Train's, in a placement group that the driver makes first. A placement group that does not fit yet waits in Ray's
queue, which is how many runs share a cluster: nobody is refused, nobody starts with half of its workers.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.train import TrainingFailedError
from ray.util.placement_group import PlacementGroup

from shoal.errors import ClusterError, ShoalError
from shoal_ray import cluster
from shoal_ray.failures import FailureLog, gist
from shoal_ray.hosted import HostedTrainer
from shoal_ray.places import Room, give_back, ready, stands
from shoal_ray.resources import Resources, choose_workers
from shoal_ray.stop import StopSignals

POLL_SEC = 0.2
LOOK_SEC = 1.0
"""Between two looks at the state of a placement group, or at what is free."""
NOTE_SEC = 3.0
"""After so long without room for its workers, the run says what it waits for."""
PLACE_SEC = 10.0
"""How long a number of workers that seemed to fit has to find its places, before it is chosen anew."""
GROW_SEC = 5.0
"""How long there must be room for more workers before an elastic run takes it: taking it costs a start."""
GROW_MAX_SEC = 600.0
PAUSE_MAX_SEC = 30.0
"""Between two starts that come to nothing."""

Begin = Callable[[int, int, PlacementGroup, FailureLog], HostedTrainer]
"""Makes the Ray Train run of an attempt: its number, its workers, their placement group, its log of losses."""


class Attempt:
    """One group of workers, trained from a thread of its own until it ends."""

    def __init__(self, trainer: HostedTrainer) -> None:
        self.value: Any = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._fit, args=(trainer,), name="attempt", daemon=True)
        self._thread.start()

    def ended(self, within_sec: float) -> bool:
        """Wait for the end, but not for long; tell whether it has come."""
        self._thread.join(within_sec)
        return not self._thread.is_alive()

    def _fit(self, trainer: HostedTrainer) -> None:
        try:
            self.value = trainer.fit().return_value  # type: ignore[attr-defined]  # ray.train's annotations describe V1
        except Exception as error:  # whoever counts the attempts decides what it means
            self.error = error


class Attempts:
    """Trains a run, group by group; the calling thread stays free for signals and the display.

    Args:
        begin: makes the Ray Train run of an attempt.
        resources: workers, and what each of them gets.
        desk: where the workers look whether they are to stop.
        max_failures: how often lost workers are replaced; -1: always.
        failures: the log of lost workers.
        signals: the first one makes the run stop at the next sample, the second abandons it.
        on_wait: called a few times a second.
        tell: shows the user a line.
    """

    def __init__(
        self,
        begin: Begin,
        resources: Resources,
        desk: Any,
        *,
        max_failures: int,
        failures: Path,
        signals: StopSignals,
        on_wait: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        self._begin = begin
        self._resources = resources
        self._room = Room(resources)
        self._desk = desk
        self._max_failures = max_failures
        self._failures = failures
        self._signals = signals
        self._on_wait = on_wait
        self._tell = tell
        self._lost = self._lost_at_start = 0
        self._grow_sec = GROW_SEC
        self._asked_news: Any = None

    def run(self) -> Any:
        """Return what the workers of the last attempt returned: all of its workers have ended in peace.

        Raises:
            ClusterError: workers were lost more often than ``max_failures``.
            SystemExit: the user insisted, or asked to stop while no worker was there.
        """
        number = grown_from = 0
        while True:
            with self._placed() as (group, workers):
                number += 1
                if grown_from and workers <= grown_from:  # it was for nothing: somebody else was faster
                    self._grow_sec = min(GROW_MAX_SEC, 4 * self._grow_sec)
                log = FailureLog(self._failures, number)
                attempt = Attempt(self._begin(number, workers, group, log))
                try:
                    trained, grows, displaced = self._watch(attempt, number, workers, group)
                finally:
                    self._room.forget()
            grown_from = 0
            if attempt.error is None:
                if grows and not self._signals.asked.is_set() and _was_stopped(attempt.value):
                    grown_from = workers
                    continue
                return attempt.value
            if displaced:
                self._tell("a node was lost before the workers had started; looking for other places")
                continue
            self._count(attempt.error, log, trained)

    # --- waiting for a place ------------------------------------------------------------------------------------------

    @contextmanager
    def _placed(self) -> Iterator[tuple[PlacementGroup, int]]:
        """Wait for a placement group, and give it back at the end: all that may be left of its workers ends with it."""
        group, workers = self._place()
        try:
            yield group, workers
        finally:
            give_back(group)

    def _place(self) -> tuple[PlacementGroup, int]:
        resources, began = self._resources, time.monotonic()
        said = silent = False
        group: PlacementGroup | None = None
        workers, made = 0, 0.0
        try:
            while True:
                waited = time.monotonic() - began
                # Many may wait for long, on machines where others train: their drivers are not to be felt there.
                pause = POLL_SEC if waited < PLACE_SEC else LOOK_SEC
                try:
                    if group is None and (chosen := self._chosen(waited)):
                        group, workers, made = self._room.ask(chosen), chosen, waited
                    if not said and waited > NOTE_SEC:
                        free = cluster.free_resources()
                        said = True
                        self._tell(f"waiting for workers: asked for {resources}; free now: {free}")
                except ray.exceptions.RayError as error:  # the head is being started again
                    if not silent:
                        self._tell(f"the cluster's head does not answer ({gist(error)}); asking again")
                    silent = True
                if group is not None and ready(group, pause):
                    return group, workers
                if group is not None and resources.min_workers is not None and waited - made > PLACE_SEC:
                    give_back(group)
                    group = None
                self._on_wait()
                if self._signals.asked.is_set():
                    self._tell("stopped while waiting for workers; --resume goes on")
                    raise SystemExit(self._signals.exit_code)
                if group is None:
                    time.sleep(pause)
        except BaseException:
            if group is not None:
                give_back(group)
            raise

    def _chosen(self, waited_sec: float) -> int | None:
        if self._resources.min_workers is None:
            return self._resources.workers
        possible = self._room.possible()
        grows = possible > self._room.there()
        return choose_workers(self._resources, self._room.free(), possible, waited_sec, grows=grows)

    # --- while it trains ----------------------------------------------------------------------------------------------

    def _watch(self, attempt: Attempt, number: int, workers: int, group: PlacementGroup) -> tuple[bool, bool, bool]:
        """Wait for the end of an attempt.

        Returns:
            whether it came to train; whether it was stopped so that more workers can go on; whether it lost its places
            before that.
        """
        trains = grows = displaced = False
        looked, roomy_since = time.monotonic(), None
        while not attempt.ended(POLL_SEC):
            if self._signals.insisted.is_set():
                raise SystemExit(self._signals.exit_code)
            if self._signals.asked.is_set() or grows:
                self._desk.stop.remote(number)
            trains = self._news() >= number or trains
            self._on_wait()
            now = time.monotonic()
            if displaced or grows or now - looked < LOOK_SEC:
                continue
            looked = now
            if not trains and not stands(group):
                displaced = True
                give_back(group)  # or its workers would wait for the node to come back
            elif trains and workers < self._resources.workers:
                room = self._room_for_more(workers)
                roomy_since = (roomy_since or now) if room else None
                if roomy_since is not None and now - roomy_since >= self._grow_sec:
                    grows = True
                    more = min(self._resources.workers, workers + room)
                    self._tell(f"room for {more} workers instead of {workers}: going on with them from the next sample")
        trains = self._news() >= number or trains
        self._on_wait()
        return trains, grows, displaced

    def _room_for_more(self, workers: int) -> int:
        try:
            return self._room.for_more(workers)
        except ray.exceptions.RayError:  # the head is being started again
            return 0

    def _news(self) -> int:
        """Show what the workers have to say; return the newest attempt that trains."""
        if self._asked_news is None:
            self._asked_news = self._desk.collect.remote()
        try:
            training, notes = ray.get(self._asked_news, timeout=LOOK_SEC)
        except ray.exceptions.GetTimeoutError:  # what is handed over is waited for: the desk does not keep it
            return 0
        except ray.exceptions.RayError:
            self._asked_news = None
            return 0
        self._asked_news = None
        for note in notes:
            self._tell(note)
        return int(training)

    def _count(self, error: Exception, log: FailureLog, trained: bool) -> None:
        """Count a loss; where it is not the last one that is borne, pause if nothing comes of the starts.

        Raises:
            ClusterError: it is.
        """
        if not isinstance(error, TrainingFailedError):
            raise error
        if not log.lost:  # lost before Ray looked at them for the first time
            log.write({"?": gist(error)})
        self._lost += 1
        self._lost_at_start = 0 if trained else self._lost_at_start + 1
        if 0 <= self._max_failures < self._lost:
            said = "; ".join(f"rank {rank}: {text}" for rank, text in log.lost.items())
            raise ClusterError(
                f"the run was given up: workers were lost {self._lost} time(s), and --max-failures is"
                f" {self._max_failures}. At last, {said}. --resume goes on"
            ) from error
        until = time.monotonic() + min(PAUSE_MAX_SEC, 2.0 ** min(self._lost_at_start, 10) - 2)
        while time.monotonic() < until and not self._signals.asked.wait(POLL_SEC):
            self._on_wait()


def _was_stopped(value: Any) -> bool:
    return not isinstance(value, ShoalError) and bool(value["stopped"])
