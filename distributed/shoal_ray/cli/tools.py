"""``shoal presets`` and ``board``."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.padding import Padding

from shoal.config import presets as known_presets
from shoal.config import read_config
from shoal.errors import RunError
from shoal.storage.location import Location
from shoal.storage.mirror import Mirror
from shoal_ray.cli.paths import placed


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(presets)
    app.command()(board)


def presets(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show all of one preset.")] = None,
) -> None:
    """List the ready-made runs, or show one with every key."""
    console = Console(highlight=False)
    if name is not None:
        config = read_config(name)
        for line in _opening(known_presets().get(name, Path(name))):
            print(f"# {line}")
        print(config.to_yaml(), end="")
        return
    for preset, path in known_presets().items():
        config = read_config(preset)
        shape = f"{config.objective.name}, {config.nets.name} nets, latent {config.nets.latent}"
        console.print(f"[bold]{preset}[/]  {shape}, {config.duration_samples:,} samples", soft_wrap=True)
        console.print(Padding(" ".join(_opening(path)[1:]), (0, 0, 1, 4)))
    console.print("shoal presets NAME shows every key; shoal train NAME --data DIR key=value trains it")


def _opening(path: Path) -> list[str]:
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return lines


def board(
    runs: Annotated[str, typer.Argument(metavar="RUN", help="A run, or a folder of runs to compare; or its URI.")],
    port: Annotated[int, typer.Option(help="0: any free one.")] = 6006,
    host: Annotated[str, typer.Option(help="Who may look; TensorBoard asks for no password.")] = "127.0.0.1",
) -> None:
    """Open TensorBoard on a run, or on a folder of runs; of one at a URI, on what is there now."""
    place = placed(runs)
    folder = place if isinstance(place, Path) else copy_of_events(place)
    if not folder.is_dir():
        raise RunError(f"{place} is not a directory; give a run, or the folder with all of them")
    arguments = ["--logdir", str(folder), "--port", str(port), "--host", host]
    os.execv(sys.executable, [sys.executable, "-m", "tensorboard.main", *arguments])


def copy_of_events(home: Location) -> Path:
    """Return a copy of the event files below a URI.

    Raises:
        RunError: there are none.
    """
    mirror = Mirror.of(home, writes=False)
    events = [name for name in home.files() if "tfevents" in name]
    if not events:
        raise RunError(f"{home} holds no event files; give a run, or the folder with all of them")
    with mirror.alone():
        mirror.pull(events)
    return mirror.path
