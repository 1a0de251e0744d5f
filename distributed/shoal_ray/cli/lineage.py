"""``shoal lineage``: who descends from whom in a search."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from shoal.checkpoint import directory_name
from shoal.errors import ConfigError
from shoal.files import write_text
from shoal.run import read_rows
from shoal_ray.cli.paths import expanded
from shoal_ray.cli.tables import print_table

if TYPE_CHECKING:
    from shoal_ray.population.directory import SearchDirectory

PICTURES = ("samples", "reconstructions")
PICTURES_BYTES = 16_000_000
"""At most in a page; the newest pictures of each member come first."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(lineage)


def lineage(
    search: Annotated[Path, typer.Argument(metavar="SEARCH", help="Directory of a search.")],
    export: Annotated[
        Path | None, typer.Option(help="Write the winning line's schedule as a run for `shoal train`.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the winning line as JSON.")] = False,
) -> None:
    """Write SEARCH/lineage.html, the family tree, and print the winning line."""
    from shoal_ray.population.board import shown
    from shoal_ray.population.directory import SearchDirectory
    from shoal_ray.population.winner import best_line, winner

    directory = SearchDirectory.open(expanded(search))
    line, last = best_line(directory)
    if export is not None:
        target = expanded(export)
        if target.suffix not in (".yaml", ".yml"):
            raise ConfigError(f"--export {export} is not a YAML file; name it e.g. winner.yaml")
        write_text(target, winner(directory).to_yaml())
    page = write_page(directory)
    if as_json:
        print(json.dumps([{**vars(piece), "values": dict(piece.values)} for piece in line], indent=1))
        return
    console = Console(highlight=False)
    table = Table(title="the winning line")
    for title in ("member", "from", "to", "fitness", *directory.search.space):
        table.add_column(title, justify="right")
    for piece, following in zip(line, [*line[1:], None], strict=True):
        end = last if following is None else following.parent_samples or piece.end_samples
        fitness = "-" if piece.fitness is None else f"{piece.fitness:.5g}"
        values = (shown(piece.values.get(key, "-")) for key in directory.search.space)
        table.add_row(str(piece.member), f"{piece.start_samples:,}", f"{end:,}", fitness, *values)
    print_table(console, table)
    console.print(f"family tree: {page}", soft_wrap=True, markup=False)
    if export is not None:
        console.print(f"train it: shoal train {export} --data {directory.data}", soft_wrap=True, markup=False)


def write_page(directory: "SearchDirectory") -> Path:
    """Write ``SEARCH/lineage.html``; return its path."""
    from shoal_ray.population.lineage_page import lineage_page
    from shoal_ray.population.winner import best_state

    rows = read_rows(directory.population)
    path = directory.path / "lineage.html"
    fitness = directory.search.fitness
    text = lineage_page(
        directory.path.name,
        read_rows(directory.lineage),
        rows,
        mode=fitness.mode,
        metric=fitness.metric,
        best=best_state(directory),
        pictures=_pictures(directory, rows),
    )
    write_text(path, text)
    return path


def _pictures(directory: "SearchDirectory", rows: list[dict[str, object]]) -> dict[tuple[int, int], bytes]:
    """Return the pictures that members drew at the ends of their generations, the newest first, as many as fit."""
    found: dict[tuple[int, int], bytes] = {}
    room = PICTURES_BYTES
    for row in sorted(rows, key=lambda row: -int(str(row["samples"]))):
        member, samples = int(str(row["member"])), int(str(row["samples"]))
        for kind in PICTURES:
            path = directory.member(member) / "images" / f"{kind}-{directory_name(samples)}.png"
            if path.is_file() and path.stat().st_size <= room:
                found[member, samples] = path.read_bytes()
                room -= len(found[member, samples])
                break
    return found
