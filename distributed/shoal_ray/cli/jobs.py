"""``shoal jobs``: what was submitted to a cluster, what it says, and how to stop it."""

import json
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shoal.errors import ClusterError, ConfigError
from shoal_ray.cli.paths import expanded
from shoal_ray.cli.tables import print_table

if TYPE_CHECKING:
    from shoal_ray.submission.api import JobsApi
    from shoal_ray.submission.outcome import Job

INTERRUPTED = 130
"""A shell's exit code after Ctrl-C."""

NEWEST = 20
"""So many jobs are listed, of a cluster that has had more."""

STYLES = {"running": "green", "stopped": "yellow", "failed": "red", "killed": "red", "queued": "cyan"}

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}")
"""A job's name stands in URLs and in the names of files."""

STOP_PATIENCE_SEC = 60.0
"""More than the 30 s after which Ray kills a job that does not stop."""

LOOK_SEC = 0.5

AddressOption = Annotated[
    str | None,
    typer.Option(help="URL of the cluster's dashboard. (default: $RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265)"),
]
ClusterOption = Annotated[
    Path | None,
    typer.Option(help="The cluster file of `ray up`: an ssh tunnel to its head is opened while this command lasts."),
]
NameArgument = Annotated[str, typer.Argument(metavar="JOB")]

app = typer.Typer(help="Look at what was submitted to a cluster, and stop it.", no_args_is_help=True)


@app.command("list")
def list_jobs(
    address: AddressOption = None,
    cluster: ClusterOption = None,
    everything: Annotated[bool, typer.Option("--all", help=f"Not the newest {NEWEST} only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the jobs that Shoal submitted, the newest first: how they are, or how they ended."""
    with reached(address, cluster) as api:
        jobs = api.jobs()[::-1]
        shown = api.told(jobs if everything else jobs[:NEWEST])
    if as_json:
        print(json.dumps([job.plain() for job in shown], indent=1))
        return
    if not shown:
        print("no jobs; `shoal submit` makes them")
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("job", "state", "run", "since", "notes"):
        table.add_column(heading, overflow="fold")
    for job in shown:
        since = f"{datetime.fromtimestamp(job.ended or job.submitted):%Y-%m-%d %H:%M:%S}"
        cells = (
            Text(job.id),
            Text(state(job), style=STYLES.get(job.state, "")),
            Text(job.run),
            Text(since),
            _note(job),
        )
        table.add_row(*cells)
    console = Console(highlight=False)
    print_table(console, table)
    if len(shown) < len(jobs):
        console.print(f"and {len(jobs) - len(shown)} older ones: --all")


@app.command()
def logs(
    job: NameArgument,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until it ends; Ctrl-C leaves it.")] = False,
    address: AddressOption = None,
    cluster: ClusterOption = None,
) -> None:
    """Show what a job has said; with --follow, leave with its exit code."""
    from shoal_ray.submission.follow import readable

    with reached(address, cluster) as api:
        if follow:
            api.job(job)
            sys.exit(watch(api, job, _aside()))
        known = api.job(job)
        text = readable(api.log(job))[0] if known.node else ""
        sys.stdout.write(text or (f"{known.message}\n" if known.message else ""))


@app.command()
def stop(
    job: NameArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has stopped.")] = False,
    address: AddressOption = None,
    cluster: ClusterOption = None,
) -> None:
    """Stop a job: its run writes a checkpoint at the sample that it is at, and can go on from there."""
    with reached(address, cluster) as api:
        known = api.job(job)
        if not known.live:
            (known,) = api.told([known])
            print(f"{job} has ended already: {state(known)}")
            return
        api.stop(job)
        if not wait:
            print(f"asked {job} to stop: it writes a checkpoint first. `shoal jobs list` shows when it has")
            return
        deadline = time.monotonic() + STOP_PATIENCE_SEC
        while (known := api.job(job)).live:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{job} was asked to stop, and runs still; `shoal jobs logs {job}` says what it does"
                )
            time.sleep(LOOK_SEC)
        (known,) = api.told([known])
    print(f"{job}: {state(known)}")
    if known.state == "killed":
        raise ClusterError(
            f"{job} did not say how it ended: it was stopped before it began, or killed after 30 s. What its run has on"
            " disk is whole: --resume goes on from its newest checkpoint"
        )
    if known.state == "stopped" and known.command:
        again = [*places(address, cluster), *known.options, "--", known.command, "--resume", "--out", known.run]
        print(f"resume: {shlex.join(['shoal', 'submit', *again])}")


@contextmanager
def reached(address: str | None, cluster: Path | None) -> Iterator["JobsApi"]:
    """Talk to the cluster that the options name; a caution goes to stderr, since stdout may be JSON."""
    from shoal_ray.submission.connect import connected

    def caution(text: str) -> None:
        _aside().print(f"caution: {text}", style="yellow")

    with connected(address, expanded(cluster) if cluster is not None else None, caution) as api:
        yield api


def watch(api: "JobsApi", job: str, aside: Console) -> int:
    """Show a job's log until it ends; return its exit code, or that of Ctrl-C, which leaves the job alone."""
    from shoal_ray.submission.follow import follow

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        ended = follow(api, job, write, aside.print)
    except KeyboardInterrupt:
        aside.print(f"\n{job} goes on without us")
        return INTERRUPTED
    if ended.outcome is None and ended.state != "finished" and ended.message:
        aside.print(f"the cluster says: {ended.message}")  # its driver could not
    aside.print(f"{job}: {state(ended)}")
    return ended.exit_code


def state(job: "Job") -> str:
    """Return a job's state, with the sample that its run came to."""
    at = job.outcome.samples if job.outcome else None
    return job.state if at is None else f"{job.state} at sample {at:,}"


def tell(console: Console, job: str, where: list[str], again: str) -> None:
    """Print the commands to look, to stop and to go on."""
    console.print(f"  look    {shlex.join(['shoal', 'jobs', 'logs', job, '--follow', *where])}")
    console.print(f"  stop    {shlex.join(['shoal', 'jobs', 'stop', job, *where])}")
    console.print(f"  resume  {again}")


def places(address: str | None, cluster: Path | None) -> list[str]:
    """Return the options that name the same cluster again."""
    return [*(["--address", address] if address else []), *(["--cluster", str(cluster)] if cluster else [])]


def job_name(text: str, *, mend: bool = False) -> str:
    """Return a job's name; one that is made of a run's is mended.

    Raises:
        ConfigError: it cannot be one.
    """
    from shoal_ray.submission.probe import PREFIX

    if mend:
        text = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-._")[:40] or "job"
        return f"job-{text}" if text.startswith(PREFIX) else text
    if text.startswith(PREFIX):
        raise ConfigError(f"--name {text} begins as the jobs do that only check, {PREFIX!r}; give another")
    if NAME.fullmatch(text) is None:
        raise ConfigError(f"--name {text!r} cannot be a job's; use letters, digits, '-', '_' and '.', at most 60")
    return text


def _note(job: "Job") -> Text:
    why = (job.outcome.why if job.outcome else None) or ("" if job.state == "finished" or job.live else job.message)
    return Text((why or "").strip().partition("\n")[0][:120], style="yellow")


def _aside() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False, markup=False)
