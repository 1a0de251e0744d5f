"""``shoal tune``: from a search and a data set to a population, and to the best of it."""

import json
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from shoal.data import DataSet
from shoal.errors import ConfigError, ShoalError
from shoal.files import write_text
from shoal.objectives import load_plugin
from shoal.run import EVALUATION, Run, read_rows
from shoal.run_files import refuse_locked
from shoal.storage.location import Location
from shoal_ray import before_ray, warm
from shoal_ray.cli.paths import expanded, located, placed
from shoal_ray.cli.progress import images_progress
from shoal_ray.cli.train import split_words
from shoal_ray.resources import Resources
from shoal_ray.stop import StopSignals

if TYPE_CHECKING:
    from shoal_ray.population.directory import SearchDirectory
    from shoal_ray.population.search_config import SearchConfig


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(tune)


def tune(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="SEARCH [K=V]...", help="A YAML file, or a name in tune_configs/; then overrides."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Data set: directory or URI (see `shoal data import`).")] = None,
    out: Annotated[str | None, typer.Option(help="Directory of the search. (default: runs/SEARCH)")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the search in --out.")] = False,
    population: Annotated[int | None, typer.Option(min=2, help="Members. (default: as the search says)")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="DDP workers of each member. (default: 1; of a resumed search: as before)")
    ] = None,
    cpus_per_worker: Annotated[
        float | None, typer.Option(min=0.01, help="(default: a share of this machine; with --address: 1)")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(min=0, help="May be a fraction. (default: a share; with --address: 1, if there are)")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster, e.g. auto or ray-head:6379. (default: start one here)")
    ] = None,
    turns: Annotated[
        bool, typer.Option("--turns", help="Let members train in turns where not all fit at once.")
    ] = False,
    max_failures: Annotated[int, typer.Option(min=-1, help="Lost workers of a member that are replaced.")] = 3,
    plugin: Annotated[Path | None, typer.Option(help="Python file with an objective of your own.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Ask the cluster whether all this could train, and leave; write nothing.")
    ] = False,
) -> None:
    """Search learning rates, latent sizes and whatever else as a population; the best keeps what was learned.

    shoal tune vae-pbt --data data/fashion-mnist --population 8 fitness.images=1000
    """
    from shoal_ray.population.check import check_search
    from shoal_ray.population.directory import SearchDirectory, refuse_existing
    from shoal_ray.population.preview import refuse_unknown_metric
    from shoal_ray.population.search_config import read_search

    console = Console(highlight=False)
    name, overrides = split_words(words or [])
    if name is None and not (resume and out):
        raise ConfigError("no SEARCH given; name a YAML file or one of tune_configs/, or --resume with --out")
    place = placed(out or f"runs/{Path(str(name)).stem}")
    if not isinstance(place, Path):
        raise ConfigError(
            f"--out {place}: a search is kept in a directory that every node mounts, not at a URI; name one"
        )
    path = place.absolute()
    if plugin is not None:
        load_plugin(expanded(plugin))
    if address is None:
        warm.begin()  # it imports while the search is checked
    old = SearchDirectory.open(path) if resume else None
    if old is not None and (overrides or population or plugin or (name and out)):
        raise ConfigError(
            "--resume goes on with the search as it was; leave out SEARCH, overrides, --population and --plugin"
        )
    if old is not None:
        search, dataset = old.search, located(data) if data else old.data
        old = replace(old, data=dataset)
    else:
        refuse_existing(path)
        if data is None:
            raise ConfigError("no data set given; --data DIR names one (make it with `shoal data import`)")
        dataset = located(data)
        chosen = [f"population={population}"] if population else []
        search = read_search(str(name), [*overrides, *chosen])
    before = Run.facts_of(path) if resume else {}
    asked = Resources(workers or before.get("workers", 1), cpus_per_worker or 1.0, gpus_per_worker)
    opened = DataSet.open(dataset)
    cautions = check_search(search, opened, asked.workers)
    if old is None:
        refuse_unknown_metric(search, opened)
    announce(search, dataset, cautions, console)

    began = time.monotonic()
    signals = StopSignals()
    with signals.listening():
        before_ray.prepare(address)
        from shoal_ray import cluster
        from shoal_ray.population import capacity
        from shoal_ray.population.board import PopulationBoard
        from shoal_ray.population.search import run_search
        from shoal_ray.population.standing import Standing
        from shoal_ray.population.view import SearchView
        from shoal_ray.preflight import kept_warm, preflight
        from shoal_ray.submission import nodes_told

        with cluster.connected(address), signals.listening():
            nodes = cluster.possible_nodes()
            if address is None:
                parallel = search.algorithm == "pbt" and not turns
                few = capacity.at_once(search.population, nodes, parallel=parallel)
                shared = capacity.share_out(asked, few, nodes)
                asked = replace(
                    asked,
                    cpus_per_worker=cpus_per_worker or shared.cpus_per_worker,
                    gpus_per_worker=shared.gpus_per_worker if gpus_per_worker is None else gpus_per_worker,
                )
            plan = capacity.plan(asked, search.population, nodes, turns=turns, parallel=search.algorithm == "pbt")
            ready = preflight(plan.resources, path.parent, dataset, nodes_told.known())
            if signals.asked.is_set():
                raise SystemExit(signals.exit_code)
            if check:
                refuse_locked(path, path)
                nodes_told.tell(ready.pythons)
                console.print("all is ready, nothing was written")
                raise typer.Exit
            facts = cluster.facts(plan.resources, address)
            directory = old or SearchDirectory.create(path, search, dataset, facts, plugin and expanded(plugin))
            console.print(
                f"{search.population} members, {plan.slots} at once, {plan.resources.workers} worker(s) each of"
                f" {plan.resources.cpus_per_worker:g} CPU and {plan.resources.gpus_per_worker or 0:g} GPU",
                soft_wrap=True,
            )
            with directory.locked(), kept_warm(ready), SearchView(directory, console) as view:
                directory.note(facts)
                board = PopulationBoard(directory)

                def look(standings: Mapping[int, Standing]) -> None:
                    view.look(standings)
                    board.refresh()

                try:
                    outcome = run_search(
                        directory, plan, ready.worker_env, max_failures=max_failures, signals=signals, on_look=look
                    )
                finally:
                    board.close()
    finish(directory, outcome.stopped, time.monotonic() - began, console)
    if outcome.stopped and signals.signum is not None:
        sys.exit(signals.exit_code)


def announce(search: "SearchConfig", data: Location, cautions: list[str], console: Console) -> None:
    """Say what will be searched, and what it costs."""
    from shoal_ray.population.check import search_table

    table = Table(title="what is searched")
    for column in ("key", "values", "explored by"):
        table.add_column(column)
    for row in search_table(search):
        table.add_row(*map(Text, row))
    console.print(table)
    total = search.population * search.samples
    console.print(
        f"{search.algorithm}: {search.population} members x {search.samples:,} samples = {total:,} at most, on"
        f" {data}, in {search.generations} generations; the time is told after the first. Fitness:"
        f" {search.fitness.metric} ({search.fitness.mode})",
        soft_wrap=True,
        markup=False,
    )
    for caution in cautions:
        console.print(f"caution: {caution}", style="yellow", soft_wrap=True, markup=False)


def finish(directory: "SearchDirectory", stopped: str | None, seconds: float, console: Console) -> None:
    """Write the page and the report, print the table at the end and how to look further."""
    from shoal_ray.cli.lineage import write_page
    from shoal_ray.population.board import by_fitness, shown
    from shoal_ray.population.report import report

    page = write_page(directory)
    at = shlex.quote(str(directory.path))
    if not (directory.best / "origin.json").is_file():
        console.print(f"nothing was trained to the end of a generation; next: shoal tune --resume --out {at}")
        return
    search = directory.search
    newest = {row["member"]: row for row in read_rows(directory.population)}
    table = Table(title=escape(f"{directory.path.name}: {stopped or 'finished'} after {seconds:.0f} s"))
    for title in ("member", "fitness", "samples", *search.space):
        table.add_column(title, justify="right")
    for row in by_fitness(newest.values(), search.fitness.mode):
        fitness = "diverged" if row["fitness"] is None else f"{row['fitness']:.5g}"
        table.add_row(
            str(row["member"]), fitness, f"{row['samples']:,}", *(shown(row["values"][key]) for key in search.space)
        )
    console.print(table)
    origin = json.loads((directory.best / "origin.json").read_text())
    told = ", ".join(f"{key}={shown(value)}" for key, value in origin["values"].items())
    console.print(
        f"best: member {origin['member']} at {origin['samples']:,} samples ({told}), in {directory.best}",
        soft_wrap=True,
        markup=False,
    )
    if not stopped:
        try:
            with images_progress(Console(stderr=True)) as tell:
                measured = report(directory, tell)
        except ShoalError as error:
            console.print(f"no report: {error}", style="yellow", soft_wrap=True, markup=False)
        else:
            write_text(directory.best / EVALUATION, json.dumps(asdict(measured), indent=1) + "\n")
            for metric, value in measured.metrics.items():
                detail = measured.details[metric]
                spread = f" ({detail['low']:.5g} to {detail['high']:.5g})" if detail.get("low") is not None else ""
                console.print(f"  {measured.split}: {metric} {value:.5g}{spread}", soft_wrap=True, markup=False)
    again = f"shoal tune --resume --out {at}   or " if stopped else ""
    console.print(
        f"next: {again}look: {page}   shoal board {at}   shoal lineage {at} --export winner.yaml",
        soft_wrap=True,
        markup=False,
    )
