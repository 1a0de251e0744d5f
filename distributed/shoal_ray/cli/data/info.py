"""``shoal data info``."""

import json
from collections import Counter
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shoal.data import DataSet, Manifest
from shoal_ray.cli.class_chart import class_chart
from shoal_ray.cli.data.places import data_set


def register(app: typer.Typer) -> None:
    app.command()(info)


def info(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Data set directory, or its URI.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show what a data set holds, and how many images of each class, without reading its images."""
    dataset = DataSet.open(data_set(directory))
    manifest = dataset.manifest
    facts = {
        "shape": list(manifest.shape),
        "encoding": manifest.encoding,
        "splits": dataset.splits,
        "classes": list(manifest.class_names or []),
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "rows_per_block": manifest.rows_per_block,
        "source": manifest.source,
        "fingerprint": manifest.fingerprint,
    }
    counts = {split: class_counts(manifest, split) for split in manifest.splits} if manifest.class_names else {}
    if as_json:
        print(json.dumps({**facts, "class_counts": counts}, indent=1))
        return
    table = Table(title=Text(directory, style="table.title"), show_header=False)
    for name, value in facts.items():
        table.add_row(name, Text(_cell(value)))
    console = Console(highlight=False)
    console.print(table)
    for split, numbers in counts.items():
        console.print()
        console.print(class_chart(f"classes of {split}", list(numbers), {"images": list(numbers.values())}))
        if unlabelled := manifest.splits[split].rows - sum(numbers.values()):
            console.print(f" {unlabelled:,} images have no label")


def class_counts(manifest: Manifest, split: str) -> dict[str, int]:
    """Return the images of each class in a split of a labelled data set."""
    total: Counter[int] = Counter()
    for shard in manifest.shards:
        if shard.split == split:
            for block in shard.blocks:
                total.update(block.classes or {})
    return {name: total[number] for number, name in enumerate(manifest.class_names or ())}


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {rows:,}" for name, rows in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
