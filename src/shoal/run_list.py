"""What runs there are, and how far: read from their small files, so that hundreds take a moment."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import yaml

from shoal.checkpoint import saved
from shoal.errors import RunError
from shoal.remote_checkpoint import names, samples_of
from shoal.run_files import CHECKPOINTS, CONFIG, ENVIRONMENT, EVALUATION, LOCK, METRICS, Place, is_locked, local_path
from shoal.storage.location import Location

RunState = Literal["finished", "stopped", "running", "unfinished"]

TAIL_BYTES = 1 << 16
"""Read from the end of metrics.jsonl at first; many times a row."""

LONGEST_ROW_BYTES = 1 << 22
"""Give up looking for a row's beginning after so much: whatever it is, it is not ours."""

REQUESTS_AT_ONCE = 16
"""To a store: a listing waits for answers, not for this machine."""

# libyaml, where PyYAML was built with it, reads a configuration 10 times as fast.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class RunEntry:
    """A run directory, or what lies in its place.

    Attributes:
        name: its path below the folder that was listed.
        path: its directory, or its URI.
        state: None for what is not a run; unfinished, at a URI: nobody can tell here whether a process trains it.
        notes: what is wrong with it; empty for a sound run.
        when: seconds since 1970 of its last sign of life.
        samples: the clock of its newest metrics row or checkpoint.
        losses: ``loss/…`` of its newest metrics row.
        measures: all of eval.json, taken at the clock ``measured_at`` (None: not known).
    """

    name: str
    path: Place
    when: float
    state: RunState | None = None
    notes: tuple[str, ...] = ()
    objective: str | None = None
    nets: str | None = None
    latent: int | None = None
    samples: int = 0
    duration_samples: int | None = None
    workers: int | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    measures: Mapping[str, float] = field(default_factory=dict)
    measured_at: int | None = None


def list_runs(folder: Place) -> list[RunEntry]:
    """Return the run that ``folder`` is, or those in it and in the folders in it; in no order.

    A directory that is no run and holds none is listed too, with a note.

    Raises:
        RunError: no such folder.
        StorageError: the store refuses or does not answer.
    """
    folder = local_path(folder) or folder
    if isinstance(folder, Location):
        return list_remote_runs(folder)
    if not folder.is_dir():
        raise RunError(f"{folder} is not a directory; give the folder with your runs (`shoal train` makes runs/)")
    if (folder / CONFIG).is_file():
        return [describe(folder, folder.resolve().name)]
    found: list[RunEntry] = []
    for path in _directories(folder):
        try:
            group = [] if _is_run(path) else [inner for inner in _directories(path) if _is_run(inner)]
        except OSError as error:
            found.append(RunEntry(path.name, path, 0.0, notes=(f"cannot be read: {error.strerror}",)))
            continue
        found += [describe(inner, f"{path.name}/{inner.name}") for inner in group] or [describe(path, path.name)]
    return found


def list_remote_runs(folder: Location) -> list[RunEntry]:
    """Return the run at a URI, or those below it: of each its small files are read, the end of metrics.jsonl alone.

    Raises:
        RunError: there is none.
        StorageError: the store refuses or does not answer.
    """
    files = folder.files()
    if not files:
        raise RunError(f"{folder} holds no runs; give the folder with your runs (`shoal train --out` makes them)")
    runs = sorted({name.rpartition("/")[0] for name in files if name.rpartition("/")[2] == CONFIG})
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(pool.map(partial(_describe_remote, folder, files), runs))


def _describe_remote(folder: Location, files: Mapping[str, int], name: str) -> RunEntry:
    home, prefix = (folder / name, f"{name}/") if name else (folder, "")
    with TemporaryDirectory() as scratch:
        path = Path(scratch)
        for file in (CONFIG, ENVIRONMENT, EVALUATION):
            if prefix + file in files:
                (home / file).download(path / file)
        if metrics := files.get(prefix + METRICS):
            start = max(0, metrics - TAIL_BYTES)
            (path / METRICS).write_bytes((home / METRICS).read_range(start, TAIL_BYTES))
        for clock in names({file.removeprefix(f"{prefix}{CHECKPOINTS}/"): size for file, size in files.items()})[:1]:
            (path / CHECKPOINTS / clock).mkdir(parents=True)
        entry = describe(path, name or folder.name)
    when = (home / (METRICS if metrics else CONFIG)).modified()
    return replace(entry, path=home, when=when, state="unfinished" if entry.state == "stopped" else entry.state)


def describe(path: Path, name: str) -> RunEntry:
    """Return what a directory's files tell; nothing in them raises an error."""
    notes: list[str] = []
    config = _read(path / CONFIG, notes)
    if config is None:
        return RunEntry(name, path, _modified(path), notes=tuple(notes or [f"not a run (no {CONFIG})"]))
    facts = _read(path / ENVIRONMENT, notes)
    if facts is None and not notes:
        notes.append(f"no {ENVIRONMENT}")
    evaluation = _read(path / EVALUATION, notes) or {}
    row = newest_row(path / METRICS)
    clocks = [_whole(row.get("samples")) or 0]
    try:
        clocks += [samples_of(folder.name) for folder in saved(path / "checkpoints")[:1]]
    except OSError as error:
        notes.append(f"checkpoints: {error}")
    samples, duration = max(clocks), _whole(config.get("duration_samples"))
    objective, nets = (_section(config, key) for key in ("objective", "nets"))
    if not objective or not nets or duration is None:
        notes.append(f"{CONFIG} lacks keys of a run")
    done = duration is not None and samples >= duration
    return RunEntry(
        name=name,
        path=path,
        when=_modified(path / METRICS) or _modified(path / CONFIG),
        state="running" if is_locked(path / LOCK) else "finished" if done else "stopped",
        notes=tuple(notes),
        objective=_text(objective.get("name")),
        nets=_text(nets.get("name")),
        latent=_whole(nets.get("latent")),
        samples=samples,
        duration_samples=duration,
        workers=_whole((facts or {}).get("workers")),
        losses={key: value for key, value in finite(row).items() if key.startswith("loss/")},
        measures=finite(_section(evaluation, "metrics")),
        measured_at=_whole(evaluation.get("samples")),
    )


def newest_row(path: Path) -> dict[str, Any]:
    """Return the last whole row of a file with a JSON object per line, reading its end alone; empty where none is."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            length = TAIL_BYTES
            while True:
                start = max(0, size - length)
                file.seek(start)
                lines = file.read(size - start).split(b"\n")
                # The last piece is no whole line, nor is the first, unless it begins the file.
                for line in reversed(lines[1 if start else 0 : -1]):
                    row = _parsed(line)
                    if row is not None:
                        return row
                if not start or length >= LONGEST_ROW_BYTES:
                    return {}
                length *= 4
    except OSError:
        return {}


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """Return what is a number among the values."""
    return {
        str(key): value
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in (CONFIG, ENVIRONMENT, METRICS))


def _directories(folder: Path) -> Iterator[Path]:
    """Yield the directories of a folder; hidden ones are what is being written."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            yield path


def _read(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """Read a mapping out of a JSON or YAML file; None, with a note unless it is merely absent."""
    try:
        text = path.read_text()
        values = yaml.load(text, _Loader) if path.suffix == ".yaml" else json.loads(text)
    except FileNotFoundError:
        return None
    except OSError as error:
        notes.append(f"{path.name}: {error.strerror}")
        return None
    except (ValueError, yaml.YAMLError, RecursionError):
        values = None
    if not isinstance(values, dict):
        notes.append(f"{path.name} is damaged")
        return None
    return values


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = values.get(key)
    return section if isinstance(section, dict) else {}


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
