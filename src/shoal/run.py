"""The run directory, written the same way by every launcher.

``runs/NAME/``: config.yaml (the effective one), environment.json (where and with what), plugin.py (if any),
metrics.jsonl (a row per tick), starts.jsonl (a row per start of its workers), ended.json (how it ended, if it did),
failures.jsonl (a row per loss of workers), checkpoints/, images/, tensorboard/, eval.json, and ray/, Ray's own notes of
each start. A run at a URI has the same files there, but for ray/; every node works on a copy of its own
(`shoal.storage.mirror`), and the first worker uploads what it writes (`shoal.uploader`).
"""

import json
import platform
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from shoal import checkpoint, remote_checkpoint
from shoal.checkpoint import Checkpoint
from shoal.config import RunConfig, changed_keys, may_change, read_config, with_overrides
from shoal.errors import RunError
from shoal.files import atomic_directory, write_text
from shoal.objectives import load_plugin
from shoal.remote_checkpoint import Found
from shoal.run_files import (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    EVALUATION,
    FAILURES,
    IDENTITY,
    LOCK,
    METRICS,
    PLUGIN,
    Place,
    fetch_settings,
    local_path,
    located,
    locked,
    read_facts,
    read_rows,
    refuse_existing,
    refuse_locked,
)
from shoal.storage.location import Location
from shoal.storage.mirror import Mirror

__all__ = [
    "CONFIG",
    "ENVIRONMENT",
    "EVALUATION",
    "FAILURES",
    "LOCK",
    "METRICS",
    "PLUGIN",
    "Run",
    "environment",
    "locked",
    "read_rows",
    "refuse_changes",
    "refuse_existing",
]


@dataclass(frozen=True)
class Run:
    """A run's directory, its configuration and its data set.

    Attributes:
        path: the directory; of a run at a URI, its copy on this node.
        config: the effective configuration.
        data: the data set.
        mirror: of a run at a URI, what ties the copy to it.
    """

    path: Path
    config: RunConfig
    data: Location
    mirror: Mirror | None = None

    @property
    def place(self) -> Location:
        """Where the run is, as its user knows it: the URI, or the directory."""
        return self.mirror.home if self.mirror else Location.parse(self.path)

    @classmethod
    def create(
        cls,
        place: Place,
        config: RunConfig,
        data: Place,
        *,
        plugin: Path | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> "Run":
        """Make a new run directory, whole or not at all; at a URI it is there when its config.yaml is.

        Two processes that make a run at the same URI in the same instant do not see each other.

        Args:
            place: must not exist yet.
            config: the effective configuration.
            data: the data set.
            plugin: a Python file with the objective; copied, so that the run carries all it needs.
            facts: what to note of where it runs, e.g. the number of workers.

        Raises:
            RunError: something is already there.
            StorageError: the store refuses or does not answer.
        """
        refuse_existing(place)
        data, facts, mirror = located(data), dict(facts or {}), None
        path = local_path(place)
        if path is None:
            mirror = Mirror.of(Location.parse(place), writes=True)
            path, facts[IDENTITY] = mirror.path, secrets.token_hex(8)
            refuse_locked(path, mirror.home)
            if path.exists():  # of a run that was deleted at the URI
                mirror.set_aside()
        with atomic_directory(path) as folder:
            (folder / CONFIG).write_text(config.to_yaml())
            (folder / ENVIRONMENT).write_text(json.dumps(environment(data, facts), indent=1))
            if plugin is not None:
                shutil.copyfile(plugin, folder / PLUGIN)
        if mirror is not None:
            try:
                mirror.push((PLUGIN, ENVIRONMENT, CONFIG))
            except BaseException:
                shutil.rmtree(path)
                raise
        return cls(path.resolve(), config, data, mirror)

    @classmethod
    def open(cls, place: Place, *, writes: bool = False) -> "Run":
        """Open an existing run directory, loading its plug-in; of a run at a URI, copy what tells of it to this node.

        Args:
            place: of the run.
            writes: whether it is to be trained, or only looked at.

        Raises:
            RunError: there is no run.
            StorageError: the store refuses or does not answer.
        """
        path, mirror = local_path(place), None
        if path is None:
            mirror = Mirror.of(Location.parse(place), writes=writes)
            fetch_settings(mirror)
            path = mirror.path
        if not (path / CONFIG).is_file():
            raise RunError(f"{path} is not a run directory (no {CONFIG} in it); give the --out of a training run")
        if (path / PLUGIN).is_file():
            load_plugin(path / PLUGIN)
        config = read_config(path / CONFIG)
        try:
            data = Location.parse(cls.facts_of(path)["data"])
        except (KeyError, TypeError):
            raise RunError(
                f"{path / ENVIRONMENT} does not say where the data is; start anew with another --out"
            ) from None
        return cls(path.resolve(), config, data, mirror)

    @staticmethod
    def facts_of(place: Place) -> dict[str, Any]:
        """Return what a run directory notes of where it ran last, e.g. its number of workers; empty without a run."""
        return read_facts(place)

    def resumed(self, overrides: Sequence[str]) -> "Run":
        """Return this run with what may change changed; nothing is written.

        Raises:
            RunError: a key that may not change.
        """
        config = with_overrides(self.config, overrides)
        refuse_changes(self.config, config)
        return replace(self, config=config)

    def save(self, data: Place, facts: Mapping[str, Any]) -> "Run":
        """Write the configuration and where the run goes on now into its directory; return the run there."""
        data, facts = located(data), dict(facts)
        if self.mirror is not None and (identity := self.facts_of(self.path).get(IDENTITY)):
            facts[IDENTITY] = identity
        write_text(self.path / ENVIRONMENT, json.dumps(environment(data, facts), indent=1))
        write_text(self.path / CONFIG, self.config.to_yaml())
        if self.mirror is not None:
            self.mirror.push((ENVIRONMENT, CONFIG))
        return replace(self, data=data)

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.path / CHECKPOINTS

    def newest_checkpoint(self, passed_over: list[str] | None = None) -> Checkpoint | None:
        """Return the newest checkpoint that verifies; see ``checkpoint.newest``. One at a URI is fetched from there."""
        found = self.find_checkpoint()
        if passed_over is not None:
            passed_over += found.passed_over
        return found.checkpoint

    def find_checkpoint(self) -> Found:
        """Return the newest checkpoint that verifies, and where it was found: see ``remote_checkpoint.find``."""
        if self.mirror is None:
            passed_over: list[str] = []
            return Found(checkpoint.newest(self.checkpoints, passed_over=passed_over), passed_over=passed_over)
        with self.mirror.alone():
            found = remote_checkpoint.find(self.mirror.home / CHECKPOINTS, self.checkpoints)
            if not self.mirror.writes:
                checkpoint.prune(self.checkpoints, self.config.checkpoint.keep)
        return found

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process from training this run while the block lasts; reading it stays free.

        Of a run at a URI, only those of this node: nothing keeps two nodes from training it at once.

        Raises:
            RunError: another process trains it.
        """
        with locked(self.path, self.place):
            yield

    def metrics(self) -> list[dict[str, Any]]:
        """Read every whole row of ``metrics.jsonl``; a row that a kill cut off is left out."""
        return read_rows(self.path / METRICS)


def refuse_changes(old: RunConfig, new: RunConfig) -> None:
    """Refuse to resume a run as another one.

    Raises:
        RunError: names the first key that differs and may not.
    """
    for key in changed_keys(old, new):
        if not may_change(key):
            raise RunError(
                f"{key} may not change when a run is resumed; only duration_samples, optim.lr,"
                " optim.phases.*, report.* and checkpoint.* may. Start anew with another --out"
            )


def environment(data: Location, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run notes of where it runs: versions, platform, data set, command."""
    versions: dict[str, str | None] = {}
    for package in ("shoal", "torch", "ray", "pyarrow", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "data": str(data),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        **facts,
    }
