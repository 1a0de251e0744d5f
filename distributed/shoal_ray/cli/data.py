"""``shoal data``: make, look at and check data sets."""

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from shoal.data import DataSet
from shoal.data.importers import IMPORTERS, import_data
from shoal.data.manifest import parse_manifest
from shoal.data.verify import verify
from shoal.errors import DataError
from shoal_ray.cli.paths import expanded

app = typer.Typer(help="Import, show and verify data sets.", no_args_is_help=True)

DataDir = Annotated[Path, typer.Argument(metavar="DIR", help="Data set directory.")]


@app.command("import")
def import_command(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"One of {', '.join(IMPORTERS)}.")],
    src: Annotated[Path | None, typer.Argument(metavar="[SRC]", help="Folder or file; fashion-mnist finds it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Data set directory to make. (required)")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="folder: crop to a square and resize to this.")] = None,
    mode: Annotated[str | None, typer.Option(help="folder: L (grey) or RGB. (default: as the first image)")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="folder: leave out unreadable files, counted.")] = False,
    test_fraction: Annotated[
        float | None, typer.Option(min=0, max=0.9, help="folder without splits: this share becomes 'test'.")
    ] = None,
) -> None:
    """Turn images into a sharded, checksummed data set. Nothing is left behind if it fails."""
    if out is None:
        raise DataError(f"no destination given; add --out DIR, e.g. --out data/{kind}")
    src, out = src and expanded(src), expanded(out)
    console = Console(stderr=True, highlight=False)
    options: dict[str, Any] = {"size": size, "mode": mode, "skip_bad": skip_bad or None, "test_fraction": test_fraction}
    if kind == "fashion-mnist":
        options["notice"] = lambda text: console.print(text, markup=False)
    with Progress(
        SpinnerColumn(),
        TextColumn("importing {task.completed:,} images"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("import", total=None)
        options["progress"] = lambda done: progress.update(task, completed=done)
        with _terminable():
            manifest, num_skipped = import_data(kind, src, out, **options)
    splits = ", ".join(f"{name} {split.rows:,}" for name, split in manifest.splits.items())
    shape = "x".join(map(str, manifest.shape))
    print(f"{out}: {manifest.num_rows:,} images of {shape} ({splits}), {len(manifest.shards)} shards")
    if num_skipped:
        print(f"{num_skipped} unreadable files were left out")


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind the block as Ctrl-C does, so that the half-written data set is cleared away."""
    if threading.current_thread() is not threading.main_thread():  # only that one may catch signals
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@app.command()
def info(
    directory: DataDir, as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False
) -> None:
    """Show what a data set holds, without reading its images."""
    directory = expanded(directory)
    dataset = DataSet.open(directory)
    manifest = dataset.manifest
    facts = {
        "shape": list(manifest.shape),
        "splits": dataset.splits,
        "classes": list(manifest.class_names or []),
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "rows_per_block": manifest.rows_per_block,
        "source": manifest.source,
        "fingerprint": manifest.fingerprint,
    }
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    table = Table(title=Text(str(directory), style="table.title"), show_header=False)
    for name, value in facts.items():
        table.add_row(name, Text(_cell(value)))
    Console(highlight=False).print(table)


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {rows:,}" for name, rows in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


@app.command("verify")
def verify_command(directory: DataDir) -> None:
    """Read every byte and say exactly what is wrong; exit code 2 if anything is."""
    directory = expanded(directory)
    total = parse_manifest(directory).num_rows  # a wrong fingerprint is one of the problems to list
    console = Console(stderr=True)
    with Progress(
        TextColumn("verifying"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("verify", total=total)
        problems = verify(directory, lambda done: progress.update(task, completed=done))
    if problems:
        found = "\n  ".join(str(problem) for problem in problems)
        raise DataError(f"{directory}: {len(problems)} problem(s); import it again\n  {found}")
    print(f"{directory}: all {total:,} images verified")
