"""``shoal data copy``."""

from typing import Annotated

import typer
from rich.console import Console

from shoal.data.copying import copy
from shoal_ray.cli.data.places import data_set
from shoal_ray.cli.progress import bytes_progress


def register(app: typer.Typer) -> None:
    app.command("copy")(copy_command)


def copy_command(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Data set directory, or its URI.")],
    dest: Annotated[str, typer.Argument(metavar="DEST", help="Directory or URI to make, e.g. s3://bucket/mine.")],
) -> None:
    """Copy a data set to or from an object store; each file is compared with its checksum on the way."""
    source, target = data_set(directory), data_set(dest)
    with bytes_progress(Console(stderr=True)) as tell:
        manifest = copy(source, target, progress=lambda done, total: tell("copying", done, total))
    print(f"{target}: {manifest.num_rows:,} images, {len(manifest.shards)} shards")
