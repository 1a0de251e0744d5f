"""``shoal submit``: a run on a cluster that goes on when this machine is switched off."""

import json
import os
import secrets
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from shoal.errors import ClusterError
from shoal_ray.cli.jobs import AddressOption, ClusterOption, job_name, places, reached, tell, watch
from shoal_ray.cli.paths import expanded

if TYPE_CHECKING:
    from shoal_ray.submission.api import JobsApi
    from shoal_ray.submission.words import Words


def register(app: typer.Typer) -> None:
    """Add the command."""
    # What follows the first word is the job's own, options too.
    app.command(context_settings={"allow_interspersed_args": False})(submit)


def submit(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- train|tune ...", help="What the job does: as on one machine, with --out."),
    ] = None,
    address: AddressOption = None,
    cluster: ClusterOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show what it says until it ends; Ctrl-C leaves it.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="What to call the job. (default: after its run)")] = None,
    working_dir: Annotated[
        Path, typer.Option(help="Folder that goes along: all but what .gitignore and .rayignore name.")
    ] = Path(),
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=VALUE]",
            help="NAME: a secret, taken from this environment and shown nowhere. NAME=VALUE: a setting, seen by all.",
        ),
    ] = None,
    on_head: Annotated[
        bool, typer.Option("--on-head", help="Run the driver on the head, where the other machines come and go.")
    ] = False,
) -> None:
    """Train on a cluster, as a job: the cluster is asked whether it can, and then this machine is free to go.

    shoal submit --cluster cluster.yaml --follow -- train vae --data s3://bucket/fm --out s3://bucket/runs/vae
    """
    from shoal_ray.submission import entry, environment, nodes_told, package, probe
    from shoal_ray.submission.tree import gather
    from shoal_ray.submission.words import check, understand

    console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False, markup=False)
    asked, given = understand(words or [], context.find_root().command)  # type: ignore[arg-type]  # it is the group
    settings, hidden = environment.read(env or [], os.environ)
    tree = gather(expanded(working_dir))
    check(asked, given, tree)
    job = job_name(name) if name is not None else f"{job_name(asked.name, mend=True)}-{secrets.token_hex(2)}"

    # A secret is here by its name alone: `environment.read` lets no option through that has its value too.
    options = [*(word for item in env or [] for word in ("--env", item)), *(["--on-head"] if on_head else [])]

    with reached(address, cluster) as api:
        refuse_twin(api, asked, job, resuming=asked.resume)
        console.print(f"uploading {tree}" + (f", and {len(hidden)} secret(s)" if hidden else ""))
        uploaded, content = package.pack(tree, environment.packed(hidden) if hidden else None)
        api.upload(uploaded, content)
        prepared = entry.runtime_env(uploaded, tree, settings, secrets=bool(hidden))
        with console.status("asking the cluster whether it can train this"):
            try:
                told = probe.ask(api, asked.checking(), asked.place, prepared)
            except probe.LostPackageError:  # it was there, and went with the last job that had it
                api.upload(uploaded, content, anew=True)
                told = probe.ask(api, asked.checking(), asked.place, prepared)
        nodes = api.nodes()
        labels = entry.placement(nodes, on_head=on_head)
        api.submit(
            job,
            entry.entrypoint(entry.RUN, asked.place, asked.argv),
            runtime_env=nodes_told.with_variable(prepared, json.dumps(told)),
            metadata={
                "shoal_command": asked.command,
                "shoal_run": asked.place,
                "shoal_options": json.dumps(["--working-dir", str(tree.root), *options]),
            },
            labels=labels,
        )
        withdraw_if_second(api, asked, job)
        where = f"one of {len(nodes) - 1} worker node(s)" if labels else "the head"
        console.print(f"submitted {job}; its driver runs on {where}, and needs this machine no more")
        tree_option = ["--working-dir", str(working_dir)] if working_dir != Path() else []
        again = ["shoal", "submit", *places(address, cluster), *tree_option, *options]
        tell(console, job, places(address, cluster), shlex.join([*again, "--", *asked.again]))
        if follow:
            sys.exit(watch(api, job, console))


def refuse_twin(api: "JobsApi", asked: "Words", job: str, *, resuming: bool) -> None:
    """Refuse a name that a job has had, and a run that a job trains.

    Raises:
        ClusterError: there is one.
    """
    for other in api.jobs():
        if other.id == job:
            raise ClusterError(f"there is a job {job} already ({other.state}); give another --name")
        if other.live and other.run == asked.place:
            remedy = "stop it first, and submit again" if resuming else "give another --out"
            raise ClusterError(f"job {other.id} trains {asked.place} now; {remedy}, or wait for it")


def withdraw_if_second(api: "JobsApi", asked: "Words", job: str) -> None:
    """Stop a job where another one was submitted for the same run a moment before: each of two looks after it wrote.

    Raises:
        ClusterError: there was one.
    """
    rivals = [other for other in api.jobs() if other.live and other.run == asked.place]
    first = min(rivals, key=lambda other: (other.submitted, other.id), default=None)
    if first is not None and first.id != job:
        api.stop(job)
        raise ClusterError(f"job {first.id} was submitted for {asked.place} a moment before; {job} was withdrawn")
