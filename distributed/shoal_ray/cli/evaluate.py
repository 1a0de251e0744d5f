"""``shoal eval``: how good a run's model is."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shoal.data import DataSet
from shoal.errors import ConfigError, RunError
from shoal.files import write_text
from shoal.model import Model
from shoal.objectives import Generates
from shoal.quality.evaluate import Evaluation, evaluate
from shoal.quality.extractor import Extractor
from shoal.quality.inception import inception_extractor
from shoal.quality.store import default_extractor, named_extractor
from shoal.run_files import EVALUATION, Place
from shoal.world import launched_world
from shoal_ray.cli.paths import expanded, placed
from shoal_ray.cli.progress import images_progress
from shoal_ray.cli.results import DataDir, RunDir, Split, open_data, open_model
from shoal_ray.cli.tables import print_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("eval")(measure)


def measure(
    run: RunDir,
    data: DataDir = None,
    split: Split = "test",
    num: Annotated[int | None, typer.Option(min=1, help="Images. (default: all; at most 10,000 are generated)")] = None,
    extractor: Annotated[
        str | None, typer.Option(help="KIND-HASH, KIND or a directory. (default: the best beside the data set)")
    ] = None,
    inception_weights: Annotated[
        Path | None, typer.Option(help="File of 2015-12-05, for what may be called FID; instead of --extractor.")
    ] = None,
    importance_samples: Annotated[int, typer.Option(min=1, help="Draws for an image's likelihood.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print eval.json instead of tables.")] = False,
) -> None:
    """Measure a run on a split, and write RUN/eval.json; under torchrun with several workers.

    What is measured depends on what the model can do: images that come back, likelihoods, codes, generated images.
    Floor is what real images get in the place of generated ones.
    """
    if extractor and inception_weights:
        raise ConfigError("--extractor and --inception-weights exclude each other; give one")
    place = placed(run)
    console = Console(highlight=False)
    with launched_world() as world:
        errors = Console(stderr=True, highlight=False, quiet=not world.first)

        def prepare() -> tuple[Model, DataSet, Extractor | None]:
            model, dataset = open_model(place, errors, world.device), open_data(place, data)
            return model, dataset, chosen_extractor(model, dataset, extractor, inception_weights)

        model, dataset, network = world.together(prepare)
        if network is not None and network.facts.kind == "random" and extractor is None:
            errors.print(
                f"no extractor was made for {dataset.location} yet: distances are in the features of an untrained"
                f" network, good for a sanity check. Make one: shoal extractor train --data {dataset.location}",
                style="yellow",
                soft_wrap=True,
                markup=False,
                emoji=False,
            )
        with images_progress(errors, shown=world.first) as progress:
            result = evaluate(
                model,
                dataset,
                split,
                world=world,
                num=num,
                extractor=network,
                importance_samples=importance_samples,
                progress=progress,
            )
        if world.first:
            show(result, place, console, as_json=as_json)


def chosen_extractor(model: Model, data: DataSet, name: str | None, inception_weights: Path | None) -> Extractor | None:
    """Return the extractor that was asked for, or the default one; None where nothing is generated.

    Raises:
        RunError: one was asked for in vain.
        DataError: none of that name, or one that does not fit the data set.
    """
    if not isinstance(model.objective, Generates):
        for flag, given in (("--extractor", name), ("--inception-weights", inception_weights)):
            if given:
                raise RunError(
                    f"objective '{model.config.objective.name}' generates no images, so {flag} has nothing to see;"
                    " leave it out"
                )
        return None
    if inception_weights:
        return inception_extractor(expanded(inception_weights))
    return named_extractor(name, data) if name else default_extractor(data)


def show(result: Evaluation, run: Place, console: Console, *, as_json: bool) -> None:
    """Print the measures, and write them into the run's directory."""
    text = json.dumps(asdict(result), indent=1, allow_nan=False)
    if as_json:
        print(text)
    else:
        for table in tables(result, run.name):
            print_table(console, table)
    # Last: somebody else's run can be measured where it cannot be written.
    if isinstance(run, Path):
        write_text(run / EVALUATION, text + "\n")
    else:
        (run / EVALUATION).write_bytes(f"{text}\n".encode())


def tables(result: Evaluation, name: str) -> list[Table]:
    """Return the measures and, where there are classes, the measures by class."""
    title = f"{name} after {result.samples:,} samples, on {result.num_samples:,} of {result.split}"
    if result.extractor:
        known = result.extractor["accuracy"]
        of = "" if known is None else f", {result.extractor['accuracy_split']} accuracy {known:.4f}"
        title += f"\nextractor {result.extractor['id']}{of}"
    table = Table(title=Text(title, style="table.title"))
    table.add_column("measure")
    for column in ("value", "95 % interval", "floor", "n"):
        table.add_column(column, justify="right")
    for measure, value in result.metrics.items():
        table.add_row(Text(measure), *cells(value, result.details[measure]))
    return [table, *([by_class(result.per_class)] if result.per_class else [])]


def cells(value: float, details: Mapping[str, float]) -> tuple[str, str, str, str]:
    """Return a measure's row: value, interval, floor with the ratio to it, n."""
    whole = f"{number(value)} of {details['of']:g}" if "of" in details else number(value)
    interval = f"{number(details['low'])} to {number(details['high'])}" if "low" in details else ""
    floor = number(details["floor"]) if "floor" in details else ""
    if "ratio" in details:
        floor += f" (x {details['ratio']:.1f})"
    return whole, interval, floor, f"{details['n']:,}"


def by_class(per_class: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the table of classes."""
    columns = list(dict.fromkeys(column for values in per_class.values() for column in values))
    table = Table()
    table.add_column("class")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for name, values in per_class.items():
        table.add_row(Text(name), *(number(values[column]) if column in values else "" for column in columns))
    return table


def number(value: float) -> str:
    """Return a number as one reads it."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
