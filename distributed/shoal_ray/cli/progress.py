"""The progress of work on images or files, on the terminal: what, how much, how fast, how long still."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

Tell = Callable[[str, int, int | None], None]
"""Told what is being done, how much of it is, and of how much (None: nobody knows)."""


class _Rate(TextColumn):
    """Images per second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")


@contextmanager
def images_progress(console: Console, *, shown: bool = True) -> Iterator[Tell]:
    """Yield a function to tell what is being done, how many images of it are, and of how many.

    Every ``what`` has a line of its own. Nothing is shown where there is no terminal.
    """
    with _progress(console, MofNCompleteColumn(), _Rate(), shown=shown) as tell:
        yield tell


@contextmanager
def bytes_progress(console: Console) -> Iterator[Tell]:
    """Yield the same function, to be told of bytes."""
    with _progress(console, DownloadColumn(), TransferSpeedColumn(), shown=True) as tell:
        yield tell


@contextmanager
def _progress(console: Console, *columns: ProgressColumn, shown: bool) -> Iterator[Tell]:
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    ) as progress:
        tasks = {}

        def tell(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield tell
