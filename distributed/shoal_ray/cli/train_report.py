"""What `shoal train` prints of a run before it starts and after it has ended."""

import shlex

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shoal.data import DataSet
from shoal.data.balance import quotas_of
from shoal.data.quarantine import Quarantine, QuarantinedBlock
from shoal.execute import Outcome
from shoal.recorder import last_row
from shoal.run import Run
from shoal_ray.cli.class_chart import balance_chart
from shoal_ray.cli.worker_table import restart_rows, shown, worker_rows
from shoal_ray.request import Request


def announce(request: Request, console: Console, where: str) -> None:
    """Say what is about to happen."""
    config = request.config
    verb = f"going on at sample {request.start_samples:,} with" if request.start_samples else "training"
    if request.finished:
        verb = f"nothing to do at sample {request.start_samples:,} (raise duration_samples):"
    console.print(
        f"{verb} {config.objective.name} on {config.nets.name} nets, latent {config.nets.latent}, to sample"
        f" {config.duration_samples:,} in batches of {config.batch} of {request.data} by {where}",
        soft_wrap=True,
        markup=False,
        emoji=False,
    )
    if request.warm_start is not None:
        console.print(request.warm_start.summary(), soft_wrap=True, markup=False, emoji=False)
    warnings = [f"passed over: {problem}" for problem in request.passed_over]
    for warning in [*warnings, *(f"caution: {text}" for text in request.cautions)]:
        console.print(warning, style="yellow", soft_wrap=True, markup=False, emoji=False)
    data = config.data
    if quotas := quotas_of(DataSet.open(request.data), data.split, data.balance):
        console.print(balance_chart(data.split, quotas.name.partition("/")[0], quotas.shares))


def summarise(run: Run, outcome: Outcome, seconds: float, console: Console) -> None:
    """Print the table at the end and how to look further."""
    table = Table(title=escape(f"{run.place.name}: {'stopped' if outcome.stopped else 'finished'}"), show_header=False)
    table.add_row("samples", f"{outcome.samples:,} of {run.config.duration_samples:,}")
    table.add_row("wall time, start-up included", f"{seconds:.0f} s")
    for what, found in restart_rows(run.path):
        table.add_row(what, found)
    for name, value in last_row(run.path).items():
        if name not in ("samples", "time"):
            table.add_row(escape(name), shown(name, value))
    for what, found in worker_rows(run.path):
        table.add_row(escape(what), escape(found))
    for block in quarantined(run):
        table.add_row("quarantined", escape(str(block)))
    table.add_row("run", escape(str(run.place)))
    console.print(table)
    at = shlex.quote(str(run.place))
    again = f"shoal train --resume --out {at}" if outcome.stopped else f"shoal eval {at}"
    console.print(f"next: {again}   or look: shoal board {at}", soft_wrap=True, markup=False, emoji=False)


def quarantined(run: Run) -> list[QuarantinedBlock]:
    """Return the damaged blocks that a run went on without."""
    if "data/quarantined_blocks" not in last_row(run.path) or (newest := run.newest_checkpoint()) is None:
        return []
    split, entries = newest.stream["split"], newest.stream.get("quarantine", ())
    return Quarantine(DataSet.open(run.data), split, entries).blocks()
