"""``shoal data verify``."""

from typing import Annotated

import typer
from rich.console import Console

from shoal.data.manifest import parse_manifest
from shoal.data.verify import verify
from shoal.errors import DataError
from shoal_ray.cli.data.places import data_set
from shoal_ray.cli.progress import bytes_progress


def register(app: typer.Typer) -> None:
    app.command("verify")(verify_command)


def verify_command(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Data set directory, or its URI.")],
    decode: Annotated[
        bool, typer.Option("--decode", help="Also decode every image of a data set of PNG and JPEG files.")
    ] = False,
) -> None:
    """Read every byte and say exactly what is wrong; exit code 2 if anything is."""
    place = data_set(directory)
    num_rows = parse_manifest(place).num_rows  # a wrong fingerprint is one of the problems to list
    with bytes_progress(Console(stderr=True)) as tell:
        problems = verify(place, decode=decode, progress=lambda done, total: tell("verifying", done, total))
    if problems:
        found = "\n  ".join(str(problem) for problem in problems)
        raise DataError(
            f"{place}: {len(problems)} problem(s); `shoal data repair {place} --from SRC` mends them\n  {found}"
        )
    print(f"{place}: all {num_rows:,} images verified")
