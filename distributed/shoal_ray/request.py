"""What the command line asked to train, checked against what is there before anything is written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoal.config import RunConfig, read_config
from shoal.data import DataSet
from shoal.errors import ConfigError, RunError
from shoal.loop import check, check_resume
from shoal.objectives import load_plugin
from shoal.run import Run
from shoal.run_files import Place, local_path, refuse_existing, refuse_locked
from shoal.space_check import refuse_little_space
from shoal.storage.location import Location
from shoal.storage.mirror import Mirror, refuse_unwritable
from shoal.warm_start import NOTED, WarmStart, plan


class Request:
    """A new run, or an old one that is to go on.

    Attributes:
        place: where the run is: its directory, or the URI of one.
        config: the effective configuration.
        data: where the data set is.
        start_samples: the clock that an old run goes on from.
        passed_over: why newer checkpoints of it cannot be used.
        cautions: what will run but badly.
        warm_start: what it takes from another run before its first step.
    """

    def __init__(self, place: Place, config: RunConfig, data: Location, old: Run | None, plugin: Path | None) -> None:
        self.place = place
        self.config = config
        self.data = data
        self.start_samples = 0
        self.passed_over: list[str] = []
        self.cautions: list[str] = []
        self.warm_start: WarmStart | None = None
        self._old = old
        self._plugin = plugin

    @classmethod
    def new(
        cls,
        place: Place,
        name: str,
        overrides: Sequence[str],
        data: Location | None,
        plugin: Path | None,
        workers: int,
    ) -> "Request":
        """Ask for a new run.

        Raises:
            ShoalError: whatever would keep it from training.
        """
        refuse_existing(place)
        if plugin is not None:
            load_plugin(plugin)
        config = read_config(name, overrides)
        if data is None:
            raise ConfigError("no data set given; --data DIR names one (make it with `shoal data import`)")
        request = cls(place, config, data, None, plugin)
        opened = DataSet.open(data)
        request.cautions = check(config, opened, workers)
        request.warm_start = plan(config, opened, place)
        refuse_unfit_storage(place, config, opened)
        return request

    @classmethod
    def resumed(
        cls,
        place: Place,
        name: str | None,
        overrides: Sequence[str],
        data: Location | None,
        plugin: Path | None,
        workers: int,
    ) -> "Request":
        """Ask for an old run to go on; only ``overrides`` change its configuration.

        Raises:
            ShoalError: whatever would keep it from training.
        """
        if plugin is not None:
            raise ConfigError(
                f"--plugin {plugin} does not go with --resume: the run has kept its own copy; leave it out"
            )
        if local_path(place) is None:  # before anything is fetched under the feet of a process that trains it now
            home = Location.parse(place)
            refuse_locked(Mirror.of(home, writes=True).path, home)
        old = Run.open(place, writes=True)
        if name is not None and read_config(name).objective.name != old.config.objective.name:
            raise ConfigError(
                f"{place} holds a run of objective '{old.config.objective.name}', not of {name}; leave out {name},"
                " since --resume keeps the run's own configuration, or give another --out"
            )
        run = old.resumed(overrides)
        request = cls(place, run.config, data or run.data, run, None)
        opened = DataSet.open(request.data)
        request.cautions = check(request.config, opened, workers)
        newest = run.find_checkpoint()
        found, request.passed_over = newest.checkpoint, newest.passed_over
        if found is None:
            request.warm_start = plan(request.config, opened, place)
        else:
            if not newest.at_home:
                there = "no checkpoint" if newest.newest_at_home is None else f"sample {newest.newest_at_home:,}"
                request.cautions.append(
                    f"goes on from this machine's copy at sample {found.samples:,}, which did not reach {place}:"
                    f" {there} is the newest there"
                )
            check_resume(found, request.config, opened)
            request.start_samples = found.samples
            if request.config.duration_samples < found.samples:
                raise RunError(
                    f"duration_samples={request.config.duration_samples} lies before sample {found.samples}, where the"
                    f" run stands; use duration_samples > {found.samples}"
                )
        refuse_unfit_storage(place, request.config, opened)
        return request

    @property
    def directory(self) -> Path:
        """The run's directory on this machine: of one at a URI, the copy."""
        return local_path(self.place) or Mirror.of(Location.parse(self.place), writes=True).path

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self.start_samples >= self.config.duration_samples

    def write(self, **facts: Any) -> Run:
        """Write the run directory, or bring an old one up to date; return the run."""
        if self.warm_start is not None:
            facts[NOTED] = self.warm_start.facts()
        elif noted := Run.facts_of(self.place).get(NOTED):
            facts[NOTED] = noted
        if self._old is None:
            return Run.create(self.place, self.config, self.data, plugin=self._plugin, facts=facts)
        with self._old.locked():  # not under the feet of a process that trains it now
            return self._old.save(self.data, facts)


def refuse_unfit_storage(place: Place, config: RunConfig, data: DataSet) -> None:
    """Refuse a place that a run cannot be written to, or whose disk is too small for its checkpoints.

    Raises:
        StorageError: with what is wrong.
    """
    path = local_path(place)
    if path is None:
        refuse_unwritable(Location.parse(place))
    else:
        refuse_little_space(path, config, data)
