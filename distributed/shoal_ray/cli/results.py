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
from shoal.recorder import png, save_png
from shoal.render import above, grid, sample_columns
from shoal.run import Run
from shoal.run_files import Place
from shoal_ray.cli.paths import located, placed

RunDir = Annotated[str, typer.Argument(metavar="RUN", help="Run directory, or its URI.")]
DataDir = Annotated[str | None, typer.Option(help="Data set: directory or URI. (default: what the run was trained on)")]
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
    out: Annotated[str | None, typer.Option(help="PNG file. (default: RUN/samples.png)")] = None,
) -> None:
    """Generate images and lay them out in one PNG."""
    place = placed(run)
    target = picture_place(out, place / "samples.png")
    model = open_model(place, Console(stderr=True))
    labels = None if label is None else torch.full((num,), class_number(place, model, label))
    columns = (
        columns_for(num) if labels is not None else sample_columns(model.objective, model.num_classes, columns_for(num))
    )
    images = to_uint8(model.sample(num, seed, labels), "unit")
    write_picture(grid(images, columns), target)


def class_number(run: Place, model: Model, label: str) -> int:
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
    out: Annotated[str | None, typer.Option(help="PNG file. (default: RUN/reconstructions.png)")] = None,
) -> None:
    """Lay out the first images of a split above their reconstructions in one PNG."""
    place = placed(run)
    target = picture_place(out, place / "reconstructions.png")
    model, dataset = open_model(place, Console(stderr=True)), open_data(place, data)
    model.refuse_other_shape(dataset)
    if num > dataset.num_rows(split):
        raise DataError(
            f"--num {num} is more than the {dataset.num_rows(split)} images of split '{split}'; ask for fewer"
        )
    originals = torch.from_numpy(dataset.rows(split, 0, num).copy())
    again = to_uint8(model.reconstruct(originals), "unit")
    write_picture(above(originals, again, columns=min(num, 16)), target)


def open_model(run: Place, console: Console, device: torch.device | None = None) -> Model:
    """Load a run's model, onto the best device if none is given; say which checkpoints had to be passed over."""
    passed_over: list[str] = []
    model = load_model(run, device, passed_over)
    for problem in passed_over:
        console.print(f"passed over: {problem}", style="yellow", soft_wrap=True, markup=False, emoji=False)
    return model


def open_data(run: Place, data: str | None) -> DataSet:
    """Open the named data set, or the one that the run was trained on."""
    return DataSet.open(located(data) if data else Run.open(run).data)


def columns_for(num: int) -> int:
    """Return how many images go side by side: a square, if it can be."""
    return max(1, min(16, math.isqrt(num - 1) + 1))


def picture_place(out: str | None, default: Place) -> Place:
    """Return where the picture goes, before anything is computed in vain.

    Raises:
        RunError: a directory, or another kind of picture.
    """
    if out is None:
        return default
    place = placed(out)
    if isinstance(place, Path) and place.is_dir():
        raise RunError(f"--out {place} is a directory; name a file in it, e.g. --out {place / default.name}")
    if not place.name.lower().endswith(".png"):
        raise RunError(f"--out {place} does not end in .png; only PNG files are written")
    return place


def write_picture(picture: np.ndarray, place: Place) -> None:
    """Write a PNG and say where."""
    save_picture(picture, place)
    print(place)


def save_picture(picture: np.ndarray, place: Place) -> None:
    """Write a PNG."""
    if isinstance(place, Path):
        save_png(place, picture)
    else:
        place.write_bytes(png(picture))
