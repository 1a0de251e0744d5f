"""``shoal data import``."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

from shoal.data.importers import IMPORTERS, import_data
from shoal.errors import DataError
from shoal_ray.cli.data.places import local
from shoal_ray.cli.progress import images_progress

MOST_JOBS = 8

FILES = "Options of folder, parquet, webdataset"
PARQUET = "Options of parquet"


def register(app: typer.Typer) -> None:
    app.command("import")(import_command)


def import_command(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"One of {', '.join(IMPORTERS)}.")],
    src: Annotated[str | None, typer.Argument(metavar="[SRC]", help="Folder or file; fashion-mnist finds it.")] = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Data set directory to make. (required)")] = None,
    jobs: Annotated[
        int | None, typer.Option(help=f"Processes that read images. (default: the CPUs, at most {MOST_JOBS})")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take the first N images of each split.", metavar="N")] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="SHARES",
            help="Divide the images of 'train', e.g. train=0.9,val=0.1. An image's bytes decide, so equal images stay"
            " together. A folder then holds out no 'test' of its own.",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Throw away what an interrupted import left, instead of going on from it.")
    ] = False,
    size: Annotated[
        int | None, typer.Option(min=1, help="Crop to a square and resize to this.", rich_help_panel=FILES)
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="L (grey) or RGB. (default: as the first image)", rich_help_panel=FILES)
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out unreadable images, counted.", rich_help_panel=FILES)
    ] = False,
    keep_encoded: Annotated[
        bool,
        typer.Option(
            "--keep-encoded",
            help="Keep PNG and JPEG files as they are and decode them in training: less disk, more CPU.",
            rich_help_panel=FILES,
        ),
    ] = False,
    test_fraction: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.9,
            help="Without folders train, val, test: this share becomes 'test'. (default: 0.1)",
            rich_help_panel="Options of folder",
        ),
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="Of the images.", rich_help_panel=PARQUET)] = None,
    label_column: Annotated[str | None, typer.Option(help="Of the labels, or none.", rich_help_panel=PARQUET)] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="C,H,W", help="Of pixels in a column that does not say so itself.", rich_help_panel=PARQUET
        ),
    ] = None,
) -> None:
    """Turn images into a sharded, checksummed data set.

    It appears when it is whole. After Ctrl-C or a kill the same command goes on where it was; any other failure leaves
    nothing behind.
    """
    if out is None:
        raise DataError(f"no destination given; add --out DIR, e.g. --out data/{kind}")
    place = local(out, "--out")
    console = Console(stderr=True, highlight=False)
    options: dict[str, Any] = {
        "size": size,
        "mode": mode,
        "skip_bad": skip_bad or None,
        "keep_encoded": keep_encoded or None,
        "test_fraction": test_fraction,
        "image_column": image_column,
        "label_column": label_column,
        "shape": None if shape is None else _shape(shape),
    }
    with images_progress(console) as tell, _terminable():
        manifest, num_skipped = import_data(
            kind,
            None if src is None else local(src, "SRC"),
            place,
            jobs=_num_cpus() if jobs is None else jobs,
            limit=limit,
            split=split,
            fresh=fresh,
            progress=lambda done, total: tell("importing", done, total),
            notice=lambda text: console.print(text, markup=False, emoji=False, soft_wrap=True),
            **options,
        )
    splits = ", ".join(f"{name} {entry.rows:,}" for name, entry in manifest.splits.items())
    dimensions = "x".join(map(str, manifest.shape))
    print(f"{place}: {manifest.num_rows:,} images of {dimensions} ({splits}), {len(manifest.shards)} shards")
    if num_skipped:
        print(f"{num_skipped:,} unreadable images were left out")


def _num_cpus() -> int:
    try:
        return min(MOST_JOBS, len(os.sched_getaffinity(0)))
    except AttributeError:  # not Linux
        return min(MOST_JOBS, os.cpu_count() or 1)


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise DataError(f"--shape {text} is not C,H,W; give e.g. --shape 3,32,32") from None


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind the block as Ctrl-C does, so that no process is left and the user is told what is."""
    if threading.current_thread() is not threading.main_thread():  # only that one may catch signals
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
