"""``shoal compare``: what differs between runs, their measures, and their pictures in one PNG."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shoal.compare import Measures, Row, Score, compare, read_measures
from shoal.contact_sheet import columns_of, contact_sheet, refuse_different_shapes
from shoal.data import DataSet
from shoal.differences import ABSENT, differences, names_of, read_flags, read_values
from shoal.errors import DataError, ShoalError, StorageError
from shoal.model import Model
from shoal.objectives import Reconstructs
from shoal.run import Run
from shoal.run_files import EVALUATION, Place, copy_of
from shoal_ray.cli.paths import located, placed
from shoal_ray.cli.results import open_model, picture_place, save_picture
from shoal_ray.cli.tables import print_table

Differences = dict[str, tuple[Any, ...]]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare")(compare_runs)


def compare_runs(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Run directories or URIs, two at least.")],
    out: Annotated[str | None, typer.Option(help="PNG file. (default: compare.png)")] = None,
    data: Annotated[
        str | None, typer.Option(help="Data set of the originals. (default: what the first run was trained on)")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Put runs side by side: what differs in their configurations, their measures, and their pictures in one PNG."""
    places = [placed(run) for run in runs]
    target = picture_place(out, Path("compare.png"))
    names, console, errors = names_of(places), Console(highlight=False), Console(stderr=True, highlight=False)
    paths = [copy_of(place, EVALUATION) for place in places]
    changed = differences([{**read_flags(path), **read_values(path)} for path in paths])
    measures = [read_measures(path) for path in paths]
    rows = compare(measures)
    notes = [
        f"no measures of {name}; take them: {shlex.join(['shoal', 'eval', str(place)])}"
        for name, place, found in zip(names, places, measures, strict=True)
        if found is None
    ]
    models = open_models(dict(zip(names, places, strict=True)), notes, errors)
    picture = contact_sheet(models, open_originals(models, places, data, notes))
    if picture is not None:
        save_picture(picture, target)
    for note in notes:
        errors.print(Text(note, style="yellow"), soft_wrap=True)
    written = None if picture is None else str(target)
    if as_json:
        listed = [
            {"name": name, "path": str(place), "measured_at": found and found.samples}
            for name, place, found in zip(names, places, measures, strict=True)
        ]
        compared = {"differences": plain_differences(names, changed), "measures": plain_rows(names, rows)}
        print(json.dumps({"runs": listed, **compared, "notes": notes, "picture": written}, indent=1))
        return
    if changed:
        print_table(console, table_of_differences(names, changed))
    else:
        print("the configurations are the same")
    if rows:
        print_table(console, table_of_measures(names, measures, rows))
    if written is not None:
        print(written)


def open_models(places: dict[str, Place], notes: list[str], errors: Console) -> dict[str, Model]:
    """Load what can be loaded, by name; a note says why the rest cannot.

    Raises:
        RunError: models of different image shapes.
    """
    models: dict[str, Model] = {}
    for name, place in places.items():
        try:
            models[name] = open_model(place, errors)
        except ShoalError as error:  # no checkpoint, or a plug-in that fails: the rest can still be compared
            notes.append(f"no pictures of {name}: {error}")
    refuse_different_shapes(models)
    return models


def open_originals(
    models: dict[str, Model], places: list[Place], data: str | None, notes: list[str]
) -> torch.Tensor | None:
    """Return the first test images of the data set, uint8 [n, C, H, W], if any model can reconstruct them."""
    model = next((model for model in models.values() if isinstance(model.objective, Reconstructs)), None)
    if model is None:
        return None
    try:
        dataset = DataSet.open(located(data) if data else Run.open(places[0]).data)
    except (DataError, StorageError) as error:
        if data:
            raise
        notes.append(f"no reconstructions: {error}; or name the data set with --data DIR")
        return None
    model.refuse_other_shape(dataset)
    split = "test" if "test" in dataset.splits else model.config.data.split
    return torch.from_numpy(dataset.rows(split, 0, min(columns_of(model.shape), dataset.num_rows(split))).copy())


def table_of_differences(names: list[str], changed: Differences) -> Table:
    """Lay out a line per key that differs."""
    table = Table(title="what differs")
    table.add_column("key")
    for name in names:
        table.add_column(Text(name))
    for key, values in changed.items():
        table.add_row(Text(key), *(Text(_shown(value)) for value in values))
    return table


def table_of_measures(names: list[str], all_measures: list[Measures | None], rows: list[Row]) -> Table:
    """Lay out a line per measure."""
    split = next(measures.split for measures in all_measures if measures is not None)
    table = Table(title=Text(f"measures on {split}; * is the best of its row", style="table.title"))
    table.add_column("measure")
    table.add_column("better")
    table.add_column("images", justify="right")
    for name, measures in zip(names, all_measures, strict=True):
        at = "" if measures is None or measures.samples is None else f"\nafter {measures.samples:,} samples"
        table.add_column(Text(name + at), justify="right")
    for row in rows:
        n = next((score.n for score in row.scores if score is not None), None)
        cells = [_cell(score, best=place in row.best) for place, score in enumerate(row.scores)]
        table.add_row(Text(row.name), row.better or "", "" if n is None else f"{n:,}", *cells)
    return table


def plain_differences(names: list[str], changed: Differences) -> dict[str, dict[str, Any]]:
    """Return the values by key and run; a run without the key is left out, since null is a value of its own."""
    return {
        key: {name: value for name, value in zip(names, values, strict=True) if value is not ABSENT}
        for key, values in changed.items()
    }


def plain_rows(names: list[str], rows: list[Row]) -> dict[str, Any]:
    """Return the scores by measure and run; a run without the measure is left out."""
    return {
        row.name: {
            "better": row.better,
            "best": [names[place] for place in row.best],
            "scores": {name: asdict(score) for name, score in zip(names, row.scores, strict=True) if score is not None},
        }
        for row in rows
    }


def _cell(score: Score | None, *, best: bool) -> Text:
    if score is None:
        return Text("-  ")
    text = f"{score.value:.5g}" + (f" of {score.of:g}" if score.of is not None else "")
    if score.low is not None and score.high is not None:
        text += f" [{score.low:.4g}, {score.high:.4g}]"
    if score.floor is not None:
        text += f" ({score.ratio:.1f} x floor)" if score.ratio is not None else f" (floor {score.floor:.4g})"
    return Text(text + (" *" if best else "  "), style="bold green" if best else "")


def _shown(value: Any) -> str:
    if value is ABSENT:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)
