"""``shoal data repair``."""

from typing import Annotated

import typer
from rich.console import Console

from shoal.data.repair import repair
from shoal.errors import DataError
from shoal_ray.cli.data.places import data_set
from shoal_ray.cli.progress import bytes_progress


def register(app: typer.Typer) -> None:
    app.command("repair")(repair_command)


def repair_command(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Data set directory, or its URI.")],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="SRC",
            help="Another copy of the data set (directory or URI), or what it was imported from."
            " (default: where it was imported from)",
        ),
    ] = None,
) -> None:
    """Mend what verify finds wrong: only damaged blocks are copied, or imported again.

    A file takes its place when its checksums are those of the manifest. Others may read the data set meanwhile.
    """
    place = data_set(directory)
    with bytes_progress(Console(stderr=True)) as tell:
        done = repair(
            place,
            None if source is None else data_set(source),
            progress=lambda done, total: tell("verifying", done, total),
        )
    for file, what in done.mended.items():
        print(f"{file}: {what}")
    if done.left:
        files: dict[str, list[str]] = {}
        for file, why in done.left.items():
            files.setdefault(why, []).append(file)
        found = "\n  ".join(f"{', '.join(names)}: {why}" for why, names in files.items())
        raise DataError(f"{place}: {len(done.left)} file(s) could not be mended; try another --from\n  {found}")
    print(f"{place}: " + (f"{len(done.mended)} file(s) mended" if done.mended else "nothing to mend, all is right"))
