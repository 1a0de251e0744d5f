"""``shoal extractor``: the networks in whose features generated images are measured."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shoal.data import DataSet
from shoal.errors import ConfigError, did_you_mean
from shoal.quality.classifier import train_extractor
from shoal.quality.extractor import KINDS, ExtractorFacts
from shoal.quality.store import keep, kept
from shoal_ray.cli.paths import located
from shoal_ray.cli.progress import images_progress
from shoal_ray.cli.tables import print_table

app = typer.Typer(help="Make and list the networks that measure generated images.", no_args_is_help=True)

DataDir = Annotated[str, typer.Option("--data", help="Data set: directory or URI.")]


@app.command()
def train(
    data: DataDir,
    kind: Annotated[
        str | None, typer.Option(help="classifier (needs labels), rotation or random. (default: the first that can be)")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights and the order of the images.")] = 0,
    split: Annotated[str, typer.Option(help="Which part of the data set to learn from.")] = "train",
) -> None:
    """Train a feature extractor and keep it beside the data set, under the hash of its weights."""
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"no kind '{kind}'{did_you_mean(kind, KINDS)}; use --kind {', '.join(KINDS)}")
    dataset = DataSet.open(located(data))
    with images_progress(Console(stderr=True)) as tell:
        extractor = train_extractor(
            dataset, kind, seed, split=split, progress=lambda done, total: tell("training", done, total)
        )
    path = keep(extractor, dataset)
    print(f"{path}: {summary(extractor.facts)}")


@app.command("list")
def list_command(
    data: DataDir, as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False
) -> None:
    """List the extractors beside a data set; the first is the default."""
    dataset = DataSet.open(located(data))
    found = [facts for _, facts in kept(dataset)]
    if as_json:
        print(json.dumps([{"id": facts.id, **asdict(facts)} for facts in found], indent=1))
        return
    if not found:
        print(f"none yet; make one: shoal extractor train --data {dataset.location}")
        return
    table = Table(title=Text(str(dataset.location), style="table.title"))
    for column in ("extractor", "accuracy", "features", "seed", "trained on", "fits"):
        table.add_column(column, justify="left" if column in ("extractor", "fits") else "right")
    for facts in found:
        fits = facts.shape == dataset.shape and facts.fingerprint in (None, dataset.fingerprint)
        table.add_row(
            facts.id,
            accuracy(facts) or "-",
            str(facts.num_features),
            str(facts.seed),
            f"{facts.num_images:,} images",
            "yes" if fits else "no: other data",
        )
    print_table(Console(highlight=False), table)


def summary(facts: ExtractorFacts) -> str:
    """Return an extractor's name, and how good it is where that is known."""
    known = accuracy(facts)
    return f"{facts.id} ({known})" if known else facts.id


def accuracy(facts: ExtractorFacts) -> str | None:
    """Return an extractor's accuracy and where it was taken, or None."""
    return None if facts.accuracy is None else f"{facts.accuracy_split} accuracy {facts.accuracy:.4f}"
