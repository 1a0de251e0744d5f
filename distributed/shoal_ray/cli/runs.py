"""``shoal runs``: what runs there are, how far, and how good."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shoal.run_list import RunEntry, list_runs
from shoal_ray.cli.paths import placed
from shoal_ray.cli.tables import natural_width, print_table

MEASURES = {"mse": "quality/mse", "psnr": "quality/psnr", "nll": "quality/nll", "fd": "fd/", "fid": "fid"}
"""The measures that are listed, by heading; after a slash at the end stands an extractor's id."""

DISPENSABLE = ("workers", "psnr", "last loss", "nll", "when")
"""What a narrow terminal goes without first."""

STYLES = {"running": "green", "stopped": "yellow", "unfinished": "yellow"}


class Sort(StrEnum):
    """In which order runs are listed."""

    when = "when"
    name = "name"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(runs)


def runs(
    folder: Annotated[
        str, typer.Argument(metavar="[DIR]", help="Folder of runs, or of folders of them; or its URI.")
    ] = ("runs"),
    sort: Annotated[Sort, typer.Option(help="when: newest first.")] = Sort.when,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the runs of a folder: what they learn, how far they are, and how good."""
    console = Console(highlight=False)
    entries = list_runs(placed(folder))
    entries.sort(key=lambda entry: (0.0 if sort is Sort.name else -entry.when, entry.name))
    if as_json:
        print(json.dumps([_plain(entry) for entry in entries], indent=1))
    elif not entries:
        print(f"no runs in {folder}; `shoal train` makes them")
    else:
        print_table(console, _listing(entries, console))


def _listing(entries: list[RunEntry], console: Console) -> Table:
    """Lay out a line per run; a terminal that is too narrow for all columns gets those that matter most."""
    columns = {
        "run": [Text(entry.name) for entry in entries],
        "model": [Text(_model(entry)) for entry in entries],
        "state": [Text(entry.state or "", style=STYLES.get(entry.state or "", "")) for entry in entries],
        "samples": [Text(_progress(entry)) for entry in entries],
        "last loss": [Text(_losses(entry)) for entry in entries],
        **{heading: [Text(_measure(entry, name)) for entry in entries] for heading, name in MEASURES.items()},
        "workers": [Text("" if entry.workers is None else str(entry.workers)) for entry in entries],
        "when": [Text(_when(entry)) for entry in entries],
        "notes": [Text("; ".join(entry.notes), style="yellow") for entry in entries],
    }
    columns = {heading: cells for heading, cells in columns.items() if any(cells)}
    table = _table(columns)
    for heading in DISPENSABLE:
        if not console.is_terminal or natural_width(console, table).minimum <= console.width:
            break
        columns.pop(heading, None)
        table = _table(columns)
    return table


def _table(columns: Mapping[str, list[Text]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in columns:
        numbers = heading in MEASURES or heading == "workers"
        table.add_column(heading, justify="right" if numbers else "left", overflow="fold")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def _model(entry: RunEntry) -> str:
    parts = [entry.objective, entry.nets, None if entry.latent is None else f"latent {entry.latent}"]
    return " ".join(part for part in parts if part)


def _progress(entry: RunEntry) -> str:
    if not entry.duration_samples:
        return ""
    share = entry.samples / entry.duration_samples
    return f"{entry.samples:,}" + (f" ({share:.0%})" if share < 1 else "")


def _losses(entry: RunEntry) -> str:
    return "\n".join(f"{name.removeprefix('loss/')} {value:.4g}" for name, value in entry.losses.items())


def _when(entry: RunEntry) -> str:
    return f"{datetime.fromtimestamp(entry.when):%Y-%m-%d %H:%M}" if entry.when else ""


def _find(measures: Mapping[str, float], name: str) -> float | None:
    return next(
        (value for key, value in measures.items() if key == name or (name.endswith("/") and key.startswith(name))), None
    )


def _measure(entry: RunEntry, name: str) -> str:
    """Return a measure; one that was taken before the run went on says at which sample."""
    value = _find(entry.measures, name)
    if value is None:
        return ""
    old = entry.measured_at is not None and entry.measured_at != entry.samples
    return f"{value:.4g}" + (f" (at {entry.measured_at:,})" if old else "")


def _plain(entry: RunEntry) -> dict[str, Any]:
    when = datetime.fromtimestamp(entry.when, UTC).isoformat(timespec="seconds") if entry.when else None
    return {**asdict(entry), "path": str(entry.path), "when": when}
