"""``shoal train``: from a preset and a data set to a run directory."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from shoal.config import presets
from shoal.errors import ConfigError
from shoal.execute import Outcome, storage_errors
from shoal.run import FAILURES, Run
from shoal.run_files import refuse_locked
from shoal.world import World, launched_world
from shoal_ray import before_ray
from shoal_ray.cli.paths import expanded, located, placed
from shoal_ray.cli.train_report import announce, summarise
from shoal_ray.request import Request
from shoal_ray.resources import Resources, parse_workers
from shoal_ray.stop import StopSignals

HANG_TIMEOUT_SEC = 300.0
"""As long as a process group waits for a silent peer."""

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
    data: Annotated[str | None, typer.Option(help="Data set: directory or URI (see `shoal data import`).")] = None,
    out: Annotated[str | None, typer.Option(help="Run directory or URI, s3://… (default: runs/CONFIG)")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, with its own configuration.")
    ] = False,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N|MIN-MAX",
            help="DDP workers; with MIN-MAX as many as fit, now and later. (default: 1; of a resumed run: as before)",
        ),
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
    hang_timeout: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="SEC", help="A worker without progress for so long is lost; 0: never. (default: 300)"
        ),
    ] = None,
    quarantine: Annotated[
        bool | None,
        typer.Option(
            "--quarantine/--no-quarantine",
            help="Go on without blocks of rows that are damaged, or stop with an error."
            " (default: stop; of a resumed run: as before)",
        ),
    ] = None,
    plugin: Annotated[Path | None, typer.Option(help="Python file with an objective of your own.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Ask the cluster whether all this could train, and leave; write nothing.")
    ] = False,
) -> None:
    console = Console(highlight=False)
    local = local or "TORCHELASTIC_RUN_ID" in os.environ  # torchrun takes --local for an abbreviation of its own flags
    given = {
        "--cpus-per-worker": cpus_per_worker,
        "--gpus-per-worker": gpus_per_worker,
        "--address": address,
        "--workers": workers,
        "--hang-timeout": hang_timeout,
        "--check": check or None,
    }
    if local and (unfit := [flag for flag, value in given.items() if value is not None]):
        raise ConfigError(
            f"--local, or torchrun, trains in this process; {unfit[0]} does not go with it."
            " Leave out one, or start several such processes with torchrun"
        )
    name, overrides = split_words(words or [])
    if name is None and not resume:
        raise ConfigError(f"no CONFIG given; name a preset ({', '.join(presets())}) or a YAML file")
    if name is None and out is None:
        raise ConfigError("--resume needs the run: give --out RUN")
    place = placed(out or f"runs/{Path(str(name)).stem}")
    place = place.absolute() if isinstance(place, Path) else place
    dataset, plugin = None if data is None else located(data), plugin and expanded(plugin)

    def ask(workers: int) -> Request:
        if resume:
            return Request.resumed(place, name, overrides, dataset, plugin, workers)
        return Request.new(place, str(name), overrides, dataset, plugin, workers)

    began = time.monotonic()
    signals = StopSignals()
    with signals.listening():
        before = Run.facts_of(place) if resume else {}
        leave_out = bool(before.get("quarantine")) if quarantine is None else quarantine
        if local:
            with launched_world() as world:
                outcome, run = run_here(world.together(lambda: ask(world.size)), world, leave_out, signals, console)
        else:
            least, most = parse_workers(workers) if workers else (before.get("min_workers"), before.get("workers", 1))
            asked = Resources(
                most,
                cpus_per_worker or before.get("cpus_per_worker", 1.0),
                gpus_per_worker if gpus_per_worker is not None else before.get("gpus_per_worker"),
                least,
            )
            patience = HANG_TIMEOUT_SEC if hang_timeout is None else hang_timeout
            request = ask(asked.workers)
            outcome, run = run_on_ray(
                request, asked, address, max_failures, patience, leave_out, signals, console, check
            )
    if outcome is not None:
        summarise(run, outcome, time.monotonic() - began, console)
        if outcome.stopped:
            sys.exit(signals.exit_code)


def split_words(words: list[str]) -> tuple[str | None, list[str]]:
    """Tell the CONFIG from the overrides.

    Raises:
        ConfigError: more than one word without a ``=``.
    """
    names = [word for word in words if "=" not in word or word.endswith((".yaml", ".yml"))]
    if len(names) > 1:
        raise ConfigError(f"more than one CONFIG: {', '.join(names)}; give one, and overrides as key=value")
    return (names[0] if names else None), [word for word in words if word not in names]


def run_here(
    request: Request, world: World, quarantine: bool, signals: StopSignals, console: Console
) -> tuple[Outcome | None, Run]:
    """Train in this process; under torchrun the first worker writes the directory and shows the progress."""
    from shoal_ray.local import train_here

    with ExitStack() as stack:

        def begin() -> None:
            announce(request, console, f"this process ({world.device}, {world.size} worker(s))")
            with storage_errors(request.directory):
                facts = {"launcher": "local", "workers": world.size, "quarantine": quarantine}
                stack.enter_context(request.write(**facts).locked())

        world.first_says(begin)
        run = world.together(lambda: Run.open(request.place, writes=True))
        if not world.first:
            train_here(run, world, signals, lambda tick: None, lambda text: None, quarantine=quarantine)
            return None, run
        display = stack.enter_context(watching(run, request, console))
        outcome = train_here(run, world, signals, lambda tick: display.refresh(), display.note, quarantine=quarantine)
        return outcome, run


def run_on_ray(
    request: Request,
    asked: Resources,
    address: str | None,
    max_failures: int,
    hang_timeout_sec: float,
    quarantine: bool,
    signals: StopSignals,
    console: Console,
    check: bool,
) -> tuple[Outcome, Run]:
    """Train on a Ray cluster, watching from here; to ``check``, only look whether it could."""
    before_ray.prepare(address)
    from shoal_ray import cluster
    from shoal_ray.following import followed
    from shoal_ray.preflight import kept_warm, preflight
    from shoal_ray.submission import nodes_told
    from shoal_ray.train import train_on_ray

    # Listening again inside, since connecting puts Ray's own SIGTERM handler in our place.
    with cluster.connected(address), signals.listening():
        ready = preflight(asked, request.place.parent, request.data, nodes_told.known())
        if signals.asked.is_set():
            raise SystemExit(signals.exit_code)
        if check:
            refuse_locked(request.directory, request.place)
            nodes_told.tell(ready.pythons)
            announce(request, console, f"Ray, {ready.resources}: all is ready, nothing was written")
            raise typer.Exit
        run = request.write(**cluster.facts(asked, address), quarantine=quarantine)
        announce(request, console, f"Ray, {ready.resources}")
        with (
            run.locked(),
            kept_warm(ready),
            followed(run) as seen,
            watching(seen, request, console) as display,
        ):
            heard = False

            def wait() -> None:
                nonlocal heard
                display.refresh()
                if signals.asked.is_set() and not heard:
                    heard = True
                    display.note("stopping at the next sample with a checkpoint; once more to leave at once")

            outcome = train_on_ray(
                run,
                ready,
                max_failures=max_failures,
                hang_timeout_sec=hang_timeout_sec,
                quarantine=quarantine,
                signals=signals,
                on_wait=wait,
                tell=display.note,
                failures=seen.path / FAILURES,
            )
    return outcome, seen


@contextmanager
def watching(run: Run, request: Request, console: Console) -> Iterator[Any]:
    """Show the run while the block lasts."""
    from shoal_ray.display import Display

    with Display(run, console, request.start_samples) as display:
        yield display
