"""What a run has learned, to look at: ``shoal sample`` and ``reconstruct``."""

import math
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console

from shoal.data import DataSet
from shoal.errors import DataError, RunError, did_you_mean
from shoal.model import Model, load_model
from shoal.pixels import to_uint8
from shoal.recorder import save_png
from shoal.render import above, grid, sample_columns
from shoal.run import Run
from shoal_ray.cli.paths import expanded

RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")]
DataDir = Annotated[Path | None, typer.Option(help="Data set directory. (default: what the run was trained on)")]
Split = Annotated[str, typer.Option(help="Which part of the data set.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(sample)
    app.command()(reconstruct)


def sample(
    run: RunDir,
    num: Annotated[int, typer.Option(min=1, help="Images.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    label: Annotated[
        str | None, typer.Option(help="Class name or number, of a conditional GAN. (default: a column for each)")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="PNG file. (default: RUN/samples.png)")] = None,
) -> None:
    """Generate images and lay them out in one PNG."""
    run = expanded(run)
    out = picture_path(out, run / "samples.png")
    model = open_model(run, Console(stderr=True))
    labels = None if label is None else torch.full((num,), class_number(run, model, label))
    columns = (
        columns_for(num) if labels is not None else sample_columns(model.objective, model.num_classes, columns_for(num))
    )
    images = to_uint8(model.sample(num, seed, labels), "unit")
    write_picture(grid(images, columns), out)


def class_number(run: Path, model: Model, label: str) -> int:
    """Return the number of a class that is given by name or number.

    Raises:
        RunError: the model knows no classes, or not this one.
    """
    if not model.objective.needs_labels:
        raise RunError(
            f"--label {label}: objective '{model.config.objective.name}' of {run} was not told any classes; leave it"
            " out, or train with objective.conditional=true"
        )
    if label.isdecimal() and int(label) < model.num_classes:
        return int(label)
    names = open_data(run, None).class_names or []
    if label in names:
        return names.index(label)
    known = ", ".join(names) or f"0 to {model.num_classes - 1}"
    raise RunError(f"--label {label} is no class of {run}{did_you_mean(label, names)}; known: {known}")


def reconstruct(
    run: RunDir,
    data: DataDir = None,
    split: Split = "test",
    num: Annotated[int, typer.Option(min=1, help="Images.")] = 32,
    out: Annotated[Path | None, typer.Option(help="PNG file. (default: RUN/reconstructions.png)")] = None,
) -> None:
    """Lay out the first images of a split above their reconstructions in one PNG."""
    run = expanded(run)
    out = picture_path(out, run / "reconstructions.png")
    model, dataset = open_model(run, Console(stderr=True)), open_data(run, data)
    model.refuse_other_shape(dataset)
    if num > dataset.num_rows(split):
        raise DataError(
            f"--num {num} is more than the {dataset.num_rows(split)} images of split '{split}'; ask for fewer"
        )
    originals = torch.from_numpy(dataset.rows(split, 0, num).copy())
    again = to_uint8(model.reconstruct(originals), "unit")
    write_picture(above(originals, again, columns=min(num, 16)), out)


def open_model(run: Path, console: Console, device: torch.device | None = None) -> Model:
    """Load a run's model, onto the best device if none is given; say which checkpoints had to be passed over."""
    passed_over: list[str] = []
    model = load_model(run, device, passed_over)
    for problem in passed_over:
        console.print(f"passed over: {problem}", style="yellow", soft_wrap=True, markup=False, emoji=False)
    return model


def open_data(run: Path, data: Path | None) -> DataSet:
    """Open the named data set, or the one that the run was trained on."""
    return DataSet.open(expanded(data) if data else Run.open(run).data)


def columns_for(num: int) -> int:
    """Return how many images go side by side: a square, if it can be."""
    return max(1, min(16, math.isqrt(num - 1) + 1))


def picture_path(out: Path | None, default: Path) -> Path:
    """Return where the picture goes, before anything is computed in vain.

    Raises:
        RunError: a directory, or another kind of picture.
    """
    if out is None:
        return default
    out = expanded(out)
    if out.is_dir():
        raise RunError(f"--out {out} is a directory; name a file in it, e.g. --out {out / default.name}")
    if out.suffix.lower() != ".png":
        raise RunError(f"--out {out} does not end in .png; only PNG files are written")
    return out


def write_picture(picture: np.ndarray, path: Path) -> None:
    """Write a PNG and say where."""
    save_png(path, picture)
    print(path)
