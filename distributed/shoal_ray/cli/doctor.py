"""``shoal doctor``: what is there, what is missing, and how to get it."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from shoal_ray.cli.paths import placed
from shoal_ray.doctor import Finding, Tell


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(
    address: Annotated[str | None, typer.Option(help="Ray cluster to look at, e.g. auto.")] = None,
    storage: Annotated[str, typer.Option(help="Folder or URI for runs, to be written by every node.")] = "runs",
    look_at_storage: Annotated[
        bool, typer.Option("--look-at-storage/--no-storage", help="Write to the storage, from every node too.")
    ] = True,
    network: Annotated[
        bool, typer.Option("--network/--no-network", help="Measure the network between the nodes.")
    ] = True,
    network_sec: Annotated[float, typer.Option(min=0.1, help="For so long.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print all that was found as JSON.")] = False,
) -> None:
    """Show versions, devices, storage, and every node of a cluster: what is missing, and how to get it.

    On a cluster also the nodes' clocks and the network between them, for which a worker per node computes for some
    seconds: training that goes on there meanwhile is slowed down.
    """
    from shoal_ray.doctor import examine

    console = Console(highlight=False)
    with progress(console, shown=not as_json) as tell:
        findings = list(
            examine(
                address,
                placed(storage),
                network_sec=network_sec if network else 0.0,
                looks_at_storage=look_at_storage,
                tell=tell,
            )
        )
    healthy = all(finding.good for finding in findings)
    if as_json:
        print(json.dumps({"healthy": healthy, "findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        console.print(table(findings))
    if not healthy:
        sys.exit(2)


def table(findings: list[Finding]) -> Table:
    """Return the findings as a table."""
    found = Table()
    for column in ("", "what", "found", "remedy"):
        found.add_column(column)
    for finding in findings:
        mark = Text("ok", style="green") if finding.good else Text("mend", style="red")
        # As Text, since nothing in a path or an error is markup of ours.
        found.add_row(mark, *map(Text, (finding.what, finding.found, "" if finding.good else finding.remedy)))
    return found


@contextmanager
def progress(console: Console, *, shown: bool) -> Iterator[Tell]:
    """Yield what is told of looks that take long; it shows the present one, where there is a terminal."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    ) as bar:
        task = bar.add_task("this machine", total=None)

        def tell(what: str, done: float, total: float | None) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield tell
