"""``shoal cluster``: look at a launcher's file and its machines; stop what was started with it."""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shoal.errors import ClusterError
from shoal_ray.cli.paths import expanded
from shoal_ray.cli.tables import print_table

if TYPE_CHECKING:
    from shoal_ray.launch.findings import Finding

app = typer.Typer(no_args_is_help=True, help="Look at a cluster.yaml and its machines; stop what it started.")

File = Annotated[Path, typer.Argument(metavar="FILE", help="File of Ray's cluster launcher, e.g. cluster.yaml.")]
Json = Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")]


@app.command()
def check(
    file: File,
    probe: Annotated[bool, typer.Option(help="Log in to the machines, or look at the file alone.")] = True,
    as_json: Json = False,
) -> None:
    """Say what is missing before `ray up FILE`: in the file, on this machine, on each machine of the cluster.

    Machines are looked at over ssh, all at once; nothing is installed or changed there. Exit code 2 where something is
    missing.
    """
    from shoal_ray.launch.cluster_file import ClusterFile
    from shoal_ray.launch.file_check import check_file, check_login
    from shoal_ray.launch.host_check import check_hosts

    read = ClusterFile.read(expanded(file))
    findings = list(check_file(read))
    within_reach = read.local and all(finding.good for finding in check_login(read))
    answers = list(check_hosts(read)) if probe and within_reach else []
    report(findings, answers, as_json)
    if probe and not answers and not as_json:
        why = "mend the file first" if read.local else f"{read.provider.get('type')} makes them when they are needed"
        print(f"machines: not looked at; {why}")
    leave_if_missing([*findings, *answers])


@app.command()
def down(file: File, as_json: Json = False) -> None:
    """Stop Ray on every machine of FILE; on a cloud, give the machines back.

    What trains there ends as by a power cut; `shoal jobs stop` before it has a checkpoint of that very sample written.
    """
    from shoal_ray.launch.cluster_file import ClusterFile
    from shoal_ray.launch.down import stop_everything
    from shoal_ray.launch.file_check import check_login

    read = ClusterFile.read(expanded(file))
    if problems := [finding for finding in check_login(read) if not finding.good]:
        raise ClusterError("; ".join(f"{bad.where}: {bad.what}: {bad.found}; {bad.remedy}" for bad in problems))
    findings = list(stop_everything(read))
    report(findings, [], as_json)
    leave_if_missing(findings)


def report(findings: list["Finding"], answers: list["Finding"], as_json: bool) -> None:
    """Print what was found: of the file a line each, of the machines a row each."""
    if as_json:
        print(json.dumps([asdict(finding) for finding in [*findings, *answers]], indent=2))
        return
    console = Console(highlight=False)
    table = Table("", "where", "what", "found", "remedy")
    for finding in findings:
        table.add_row(mark(finding), *cells(finding))
    print_table(console, table)
    if answers:
        print_table(console, machines(answers))
        for finding in answers:
            if not finding.good:
                console.print(
                    Text(f"{finding.where}: {finding.what}: {finding.found}; {finding.remedy}"), soft_wrap=True
                )


def machines(answers: Iterable["Finding"]) -> Table:
    """Return a row for each machine, a column for each thing that was looked at."""
    rows: dict[str, dict[str, Text]] = {}
    for finding in answers:
        text = Text(finding.found if finding.good else "missing", style="" if finding.good else "red")
        rows.setdefault(finding.where, {})[finding.what] = text
    things = dict.fromkeys(thing for row in rows.values() for thing in row)
    table = Table("machine", *things)
    for address, row in rows.items():
        table.add_row(Text(address), *(row.get(thing, Text("")) for thing in things))
    return table


def cells(finding: "Finding") -> Iterator[Text]:
    """Return a row's words; as Text, since nothing in a path or an error is markup of ours."""
    for words in (finding.where, finding.what, finding.found, "" if finding.good else finding.remedy):
        yield Text(words)


def mark(finding: "Finding") -> Text:
    """Return the first cell of a row."""
    return Text("ok", style="green") if finding.good else Text("missing", style="red")


def leave_if_missing(findings: Iterable["Finding"]) -> None:
    """Exit with 2 where something is not good."""
    if not all(finding.good for finding in findings):
        sys.exit(2)
