"""``shoal data export``."""

from typing import Annotated, cast

import typer
from rich.console import Console

from shoal.data import DataSet
from shoal.data.export import To, export
from shoal.errors import DataError
from shoal_ray.cli.data.places import data_set, local
from shoal_ray.cli.progress import images_progress


def register(app: typer.Typer) -> None:
    app.command("export")(export_command)


def export_command(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Data set directory, or its URI.")],
    to: Annotated[str, typer.Option(help="folder (SPLIT/CLASS/000000.png) or parquet (as hub data sets).")] = "folder",
    out: Annotated[str | None, typer.Option(metavar="DEST", help="Directory to make. (required)")] = None,
    split: Annotated[str | None, typer.Option(help="One split, or a part: train[:1000]. (default: all splits)")] = None,
) -> None:
    """Write the images of a data set out again, as PNG files: every pixel is kept."""
    if out is None:
        raise DataError(f"no destination given; add --out DEST, e.g. --out {to}")
    dest = local(out, "--out")
    dataset = DataSet.open(data_set(directory))
    total = sum(dataset.splits.values()) if split is None else dataset.num_rows(split)
    with images_progress(Console(stderr=True)) as tell:
        done = export(dataset, dest, cast(To, to), split=split, progress=lambda num: tell("exporting", num, total))
    print(f"{dest}: {done.num_images:,} images")
    for difference in done.differences:
        print(f"note: imported again, {difference}")
