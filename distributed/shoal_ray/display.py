"""What the terminal shows of a running run: a live line and a table, or plain lines where nobody watches."""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from shoal.recorder import newest_picture
from shoal.run import FAILURES, METRICS, Run
from shoal_ray.screen import Screen

Row = Mapping[str, Any]

PLAIN_EVERY_SEC = 5.0
"""Plain lines are for logs; a fast run would fill them."""


class Tail:
    """The rows that were added to a file with a JSON object per line since the last look.

    A file that was replaced (a restarted run drops the rows of lost steps) is read from its beginning.
    """

    def __init__(self, path: Path, *, skip_existing: bool = False) -> None:
        self._path = path
        self._inode = 0
        self._offset = 0
        if skip_existing:
            self.new_rows()

    def new_rows(self) -> list[Row]:
        """Return the whole rows that are new; a half-written one waits for the next look."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())  # of the open file: the path may be another one by now
                if found.st_ino != self._inode or found.st_size < self._offset:
                    self._inode, self._offset = found.st_ino, 0
                file.seek(self._offset)
                data = file.read()
        except OSError:  # not there yet, or storage that comes and goes: the next look will tell
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return list(_readable(whole.split(b"\n")))


def _readable(lines: Iterable[bytes]) -> Iterator[Row]:
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


class Display(Screen):
    """Progress by samples, samples/s, losses, ETA and the newest picture of one run.

    It never ends a run: what it cannot read is passed over, and where nobody reads any more it falls silent.

    Args:
        run: what is watched, through the files that its first worker writes.
        console: live where it is a terminal, plain lines elsewhere.
        start_samples: the clock that the run goes on from.
    """

    def __init__(self, run: Run, console: Console, start_samples: int) -> None:
        self._run = run
        self._metrics = Tail(run.path / METRICS, skip_existing=True)
        self._failures = Tail(run.path / FAILURES, skip_existing=True)
        self._row: Row = {"samples": start_samples}
        self._picture: Path | None = None
        self._start = time.monotonic()
        self._waiting_since: float | None = self._start
        self._plain_at = 0.0
        self._progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} samples"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("ETA {task.fields[eta]}"),
            console=console,
        )
        self._task = self._progress.add_task(run.path.name, total=run.config.duration_samples, speed="", eta="?")
        super().__init__(console)  # last, since Live draws at once

    def __enter__(self) -> Self:
        self.refresh()
        return super().__enter__()

    def refresh(self) -> None:
        """Look at the run's files and show what is new."""
        for failure in self._failures.new_rows():
            workers = failure.get("workers")
            lost = workers.items() if isinstance(workers, dict) else ()
            said = "; ".join(f"rank {rank}: {str(text).partition('. ')[0]}" for rank, text in lost)
            self._waiting_since = time.monotonic()
            self.note(f"workers lost ({said or 'why is not known'}); starting again from the newest checkpoint")
        rows = [row for row in self._metrics.new_rows() if isinstance(row.get("samples"), int)]
        if rows and rows[-1]["samples"] != self._row["samples"]:
            self._row, self._waiting_since = rows[-1], None
            if not self._live:
                self._print_plain()
        if self._live:
            self._picture = newest_picture(self._run.path)

    def _print_plain(self) -> None:
        now, done = time.monotonic(), self._row["samples"] >= self._run.config.duration_samples
        if not done and now - self._plain_at < PLAIN_EVERY_SEC:
            return
        self._plain_at = now
        total = self._run.config.duration_samples
        losses = "  ".join(f"{name} {value:.4g}" for name, value in self._losses())
        line = f"samples {self._row['samples']:,}/{total:,}  {self._speed():,.0f}/s  ETA {self._eta()}  {losses}"
        self.note(line, style="")

    def _render(self) -> Group:
        now, waiting_since = time.monotonic(), self._waiting_since
        speed = f"{self._speed():,.0f}/s" if waiting_since is None else f"starting ({now - waiting_since:.0f} s)"
        eta = self._eta() if waiting_since is None else "?"
        self._progress.update(self._task, completed=self._row["samples"], speed=speed, eta=eta)
        table = Table.grid(padding=(0, 2))
        for name, value in self._losses():
            table.add_row(Text(name), f"{value:.5g}")
        table.add_row("picture", Text(str(self._picture or f"none yet ({now - self._start:.0f} s)")))
        return Group(self._progress, table)

    def _losses(self) -> list[tuple[str, float]]:
        return [
            (name, value)
            for name, value in self._row.items()
            if isinstance(value, int | float) and not name.startswith(("samples", "time", "speed/"))
        ]

    def _speed(self) -> float:
        speed = self._row.get("speed/samples_per_sec")
        return speed if isinstance(speed, int | float) else 0.0

    def _eta(self) -> str:
        left, speed = self._run.config.duration_samples - self._row["samples"], self._speed()
        if not speed:
            return "?"
        return clock(max(0, left) / speed)


def clock(seconds: float) -> str:
    """Return a time as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
