"""The run directory, written the same way by every launcher.

``runs/NAME/``: config.yaml (the effective one), environment.json (where and with what), plugin.py (if any),
metrics.jsonl (a row per tick), failures.jsonl (a row per loss of workers), checkpoints/, images/, tensorboard/,
eval.json, and ray/, Ray's own notes of each start.
"""

import fcntl
import json
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from shoal import checkpoint
from shoal.checkpoint import Checkpoint
from shoal.config import RunConfig, changed_keys, may_change, read_config, with_overrides
from shoal.errors import RunError
from shoal.files import atomic_directory, write_text
from shoal.objectives import load_plugin

CONFIG, ENVIRONMENT, PLUGIN, METRICS = "config.yaml", "environment.json", "plugin.py", "metrics.jsonl"
EVALUATION = "eval.json"
LOCK = ".lock"
FAILURES = "failures.jsonl"
"""A row for every time that workers were lost and the group was started again."""


@dataclass(frozen=True)
class Run:
    """A run's directory, its configuration and its data set."""

    path: Path
    config: RunConfig
    data: Path

    @classmethod
    def create(
        cls,
        path: Path,
        config: RunConfig,
        data: Path,
        *,
        plugin: Path | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> "Run":
        """Make a new run directory, whole or not at all.

        Args:
            path: must not exist yet.
            config: the effective configuration.
            data: the data set's directory.
            plugin: a Python file with the objective; copied, so that the run carries all it needs.
            facts: what to note of where it runs, e.g. the number of workers.

        Raises:
            RunError: something is already there.
        """
        refuse_existing(path)
        with atomic_directory(path) as folder:
            (folder / CONFIG).write_text(config.to_yaml())
            (folder / ENVIRONMENT).write_text(json.dumps(environment(data, facts or {}), indent=1))
            if plugin is not None:
                shutil.copyfile(plugin, folder / PLUGIN)
        return cls(path.resolve(), config, data.resolve())

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Open an existing run directory, loading its plug-in.

        Raises:
            RunError: there is no run.
        """
        if not (path / CONFIG).is_file():
            raise RunError(f"{path} is not a run directory (no {CONFIG} in it); give the --out of a training run")
        if (path / PLUGIN).is_file():
            load_plugin(path / PLUGIN)
        config = read_config(path / CONFIG)
        try:
            data = Path(cls.facts_of(path)["data"])
        except (KeyError, TypeError):
            raise RunError(
                f"{path / ENVIRONMENT} does not say where the data is; start anew with another --out"
            ) from None
        return cls(path.resolve(), config, data)

    @staticmethod
    def facts_of(path: Path) -> dict[str, Any]:
        """Return what a run directory notes of where it ran last, e.g. its number of workers; empty without a run."""
        file = path / ENVIRONMENT
        try:
            return dict(json.loads(file.read_text())) if file.is_file() else {}
        except (ValueError, TypeError) as error:
            raise RunError(f"{file} is damaged ({error}); start anew with another --out") from None

    def resumed(self, overrides: Sequence[str]) -> "Run":
        """Return this run with what may change changed; nothing is written.

        Raises:
            RunError: a key that may not change.
        """
        config = with_overrides(self.config, overrides)
        refuse_changes(self.config, config)
        return replace(self, config=config)

    def save(self, data: Path, facts: Mapping[str, Any]) -> "Run":
        """Write the configuration and where the run goes on now into its directory; return the run there."""
        write_text(self.path / ENVIRONMENT, json.dumps(environment(data, facts), indent=1))
        write_text(self.path / CONFIG, self.config.to_yaml())
        return replace(self, data=data.resolve())

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.path / "checkpoints"

    def newest_checkpoint(self, passed_over: list[str] | None = None) -> Checkpoint | None:
        """Return the newest checkpoint that verifies; see ``checkpoint.newest``."""
        return checkpoint.newest(self.checkpoints, passed_over=passed_over)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process from training this run while the block lasts; reading it stays free.

        Raises:
            RunError: another process trains it.
        """
        with locked(self.path):
            yield

    def metrics(self) -> list[dict[str, Any]]:
        """Read every whole row of ``metrics.jsonl``; a row that a kill cut off is left out."""
        return read_rows(self.path / METRICS)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep every other process from writing into a directory while the block lasts.

    Raises:
        RunError: another one does.
    """
    with (path / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{path} is being trained by another process; wait for it, or stop it") from None
        yield


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


def refuse_existing(path: Path) -> None:
    """Refuse to write a new run over something.

    Raises:
        RunError: ``path`` exists.
    """
    if (path / CONFIG).is_file():
        raise RunError(f"{path} already holds a run; go on with --resume, or give another --out")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"{path} exists and is not a run; give another --out")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a file with a JSON object per line, up to the first that is cut off or damaged."""
    rows: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n") or not isinstance(row, dict):
                break
            rows.append(row)
    return rows


def environment(data: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run notes of where it runs: versions, platform, data set, command."""
    versions: dict[str, str | None] = {}
    for package in ("shoal", "torch", "ray", "pyarrow", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "data": str(data.resolve()),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        **facts,
    }
