"""``shoal train``: from a preset and a data set to a run directory."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from shoal.config import RunConfig, presets, read_config
from shoal.data import DataSet, check_state
from shoal.errors import ConfigError
from shoal.execute import Outcome
from shoal.loop import check
from shoal.objectives import load_plugin
from shoal.recorder import last_row
from shoal.run import Run, refuse_existing
from shoal.world import World, launched_world
from shoal_ray.resources import Resources
from shoal_ray.stop import StopSignals

HELP = f"""Train a model: CONFIG is a preset ({", ".join(presets())}) or a YAML file; k=v sets any key.

Keys say what is learned (objective.*, nets.*, optim.*, batch, duration_samples, ema.*, report.*, checkpoint.*, seed);
`shoal presets NAME` shows all of them. Flags say where, and with how much, it runs.

shoal train autoencoder --data data/fashion-mnist --workers 2 optim.lr=5e-4
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(help=HELP)(train)


def train(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="CONFIG [K=V]...", help="Preset or YAML file, then overrides.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Data set directory (see `shoal data import`).")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory. (default: runs/CONFIG)")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, with its own configuration.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="DDP workers. (default: 1; of a resumed run: as before)")
    ] = None,
    cpus_per_worker: Annotated[
        float | None, typer.Option(min=0.01, help="May be a fraction. (default: 1; of a resumed run: as before)")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(min=0, help="May be a fraction. (default: 1 where there are enough, else 0)")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster, e.g. auto or ray-head:6379. (default: start one here)")
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="In this process, without Ray; goes without saying under torchrun.")
    ] = False,
    max_failures: Annotated[int, typer.Option(min=-1, help="Lost workers replaced before giving up; -1: always.")] = 3,
    plugin: Annotated[Path | None, typer.Option(help="Python file with an objective of your own.")] = None,
) -> None:
    console = Console(highlight=False)
    local = local or "TORCHELASTIC_RUN_ID" in os.environ  # torchrun takes --local for an abbreviation of its own flags
    if local and (address or workers):
        raise ConfigError(
            f"--local, or torchrun, trains in this process; {'--address' if address else '--workers'} does not go with"
            " it. Leave out one, or start several such processes with torchrun"
        )
    name, overrides = split_words(words or [])
    if name is None and not resume:
        raise ConfigError(f"no CONFIG given; name a preset ({', '.join(presets())}) or a YAML file")
    if name is None and out is None:
        raise ConfigError("--resume needs the run: give --out RUN")
    path = out or Path("runs") / Path(str(name)).stem
    began = time.monotonic()
    signals = StopSignals()
    with signals.listening():
        if local:
            with launched_world() as world:
                request = Request(path, name, overrides, data, plugin, resume, world.size, {"launcher": "local"})
                outcome, run = run_here(request, world, signals, console)
        else:
            before = Run.facts_of(path) if resume else {}
            asked = Resources(
                workers or before.get("workers", 1),
                cpus_per_worker or before.get("cpus_per_worker", 1.0),
                gpus_per_worker if gpus_per_worker is not None else before.get("gpus_per_worker"),
            )
            request = Request(path, name, overrides, data, plugin, resume, asked.workers, {})
            outcome, run = run_on_ray(request, asked, address, max_failures, signals, console)
    if outcome is not None:
        summarise(run, outcome, time.monotonic() - began, console)
        if outcome.stopped:
            sys.exit(signals.exit_code)


def split_words(words: list[str]) -> tuple[str | None, list[str]]:
    """Tell the CONFIG from the overrides.

    Raises:
        ConfigError: more than one word without a ``=``.
    """
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise ConfigError(f"more than one CONFIG: {', '.join(names)}; give one, and overrides as key=value")
    return (names[0] if names else None), [word for word in words if "=" in word]


class Request:
    """What the command line asked for, checked against what is there before anything is written."""

    def __init__(
        self,
        path: Path,
        name: str | None,
        overrides: list[str],
        data: Path | None,
        plugin: Path | None,
        resume: bool,
        workers: int,
        facts: dict[str, Any],
    ) -> None:
        self.path, self.workers = path, workers
        self._plugin, self._facts = plugin, facts
        self.passed_over: list[str] = []
        self.start_samples = 0
        self._old: Run | None = None
        if resume:
            self._old = Run.open(path).resumed(overrides)
            self.config: RunConfig = self._old.config
            self.data = data or self._old.data
        else:
            refuse_existing(path)
            if plugin is not None:
                load_plugin(plugin)
            self.config = read_config(str(name), overrides)
            if data is None:
                raise ConfigError("no data set given; --data DIR names one (make it with `shoal data import`)")
            self.data = data
        opened = DataSet.open(self.data)
        check(self.config, opened, workers)
        if self._old is not None:
            found = self._old.newest_checkpoint(self.passed_over)
            if found is not None:
                check_state(found.stream, opened)
                self.start_samples = found.samples

    def write(self, **facts: Any) -> Run:
        """Write the run directory, or bring an old one up to date; return the run."""
        noted = {"workers": self.workers, **self._facts, **facts}
        if self._old is None:
            return Run.create(self.path, self.config, self.data, plugin=self._plugin, facts=noted)
        return self._old.save(self.data, noted)


def run_here(request: Request, world: World, signals: StopSignals, console: Console) -> tuple[Outcome | None, Run]:
    """Train in this process; under torchrun the first worker writes the directory and shows the progress."""
    from shoal_ray.local import train_here

    if world.first:
        announce(request, console, f"this process ({world.device}, {world.size} worker(s))")
    world.first_says(lambda: request.write() and None)
    run = Run.open(request.path)
    if not world.first:
        train_here(run, world, signals, on_tick=lambda tick: None)
        return None, run
    with watching(run, request, console) as display:
        return train_here(run, world, signals, on_tick=lambda tick: display.refresh()), run


def run_on_ray(
    request: Request,
    asked: Resources,
    address: str | None,
    max_failures: int,
    signals: StopSignals,
    console: Console,
) -> tuple[Outcome, Run]:
    """Train on a Ray cluster, watching from here."""
    from shoal_ray import cluster
    from shoal_ray.train import train_on_ray

    with cluster.connected(address):
        resources = cluster.preflight(asked, request.path.resolve().parent, request.data.resolve())
        run = request.write(**cluster.facts(resources, address))
        gpus = resources.gpus_per_worker
        kind = f"{gpus:g} GPU" if gpus else f"{resources.cpus_per_worker:g} CPU"
        announce(request, console, f"Ray, {resources.workers} worker(s) of {kind}")
        # Again, since connecting put Ray's own SIGTERM handler in our place.
        with watching(run, request, console) as display, signals.listening():
            asked_to_stop = False

            def wait() -> None:
                nonlocal asked_to_stop
                display.refresh()
                if signals.asked.is_set() and not asked_to_stop:
                    asked_to_stop = True
                    display.note("stopping at the next sample with a checkpoint; once more to leave at once")

            outcome = train_on_ray(run, resources, max_failures=max_failures, signals=signals, on_wait=wait)
    return outcome, run


@contextmanager
def watching(run: Run, request: Request, console: Console) -> Iterator[Any]:
    """Show the run while the block lasts."""
    from shoal_ray.display import Display

    with Display(run, console, request.start_samples) as display:
        yield display


def announce(request: Request, console: Console, where: str) -> None:
    """Say what is about to happen."""
    config = request.config
    verb = f"going on at sample {request.start_samples:,} with" if request.start_samples else "training"
    console.print(
        f"{verb} {config.objective.name} on {config.nets.name} nets, latent {config.nets.latent}, to sample"
        f" {config.duration_samples:,} in batches of {config.batch} of {request.data} by {where}",
        soft_wrap=True,
    )
    for problem in request.passed_over:
        console.print(f"passed over: {problem}", style="yellow", soft_wrap=True)


def summarise(run: Run, outcome: Outcome, seconds: float, console: Console) -> None:
    """Print the table at the end and how to look further."""
    table = Table(title=f"{run.path.name}: {'stopped' if outcome.stopped else 'finished'}", show_header=False)
    table.add_row("samples", f"{outcome.samples:,} of {run.config.duration_samples:,}")
    table.add_row("wall time, start-up included", f"{seconds:.0f} s")
    for name, value in last_row(run.path).items():
        if name != "samples":
            table.add_row(name, f"{value:,.0f}" if name.startswith("speed/") else f"{value:.5g}")
    table.add_row("run", str(run.path))
    console.print(table)
    again = f"shoal train --resume --out {run.path}" if outcome.stopped else f"shoal eval {run.path}"
    console.print(f"next: {again}   or look: shoal board {run.path}", soft_wrap=True)
