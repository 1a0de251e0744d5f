"""What the terminal shows of a running run: a live line and a table, or plain lines where nobody watches."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from shoal.recorder import newest_picture
from shoal.run import FAILURES, METRICS, Run

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
                inode = self._path.stat().st_ino
                if inode != self._inode:
                    self._inode, self._offset = inode, 0
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


class Display:
    """Progress by samples, samples/s, losses, ETA and the newest picture of one run.

    Args:
        run: what is watched, through the files that its first worker writes.
        console: live where it is a terminal, plain lines elsewhere.
        start_samples: the clock that the run goes on from.
    """

    def __init__(self, run: Run, console: Console, start_samples: int) -> None:
        self._run = run
        self._console = console
        self._metrics = Tail(run.path / METRICS)
        self._failures = Tail(run.path / FAILURES, skip_existing=True)
        self._row: Row = {"samples": start_samples}
        self._start = time.monotonic()
        self._plain_at = 0.0
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} samples"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("ETA {task.fields[eta]}"),
            console=console,
        )
        self._task = self._progress.add_task(
            run.path.name, total=run.config.duration_samples, speed="starting", eta="?"
        )
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def refresh(self) -> None:
        """Look at the run's files and show what is new."""
        for failure in self._failures.new_rows():
            said = [f"rank {rank}: {text.partition('. ')[0]}" for rank, text in failure["workers"].items()]
            self.note(f"workers lost ({'; '.join(said)}); starting again from the newest checkpoint")
        rows = self._metrics.new_rows()
        if rows and rows[-1]["samples"] != self._row["samples"]:
            self._row = rows[-1]
            if not self._live:
                self._print_plain()
        if self._live:
            self._live.update(self._render())

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, style="yellow", highlight=False, markup=False)

    def _print_plain(self) -> None:
        now, done = time.monotonic(), self._row["samples"] >= self._run.config.duration_samples
        if not done and now - self._plain_at < PLAIN_EVERY_SEC:
            return
        self._plain_at = now
        total = self._run.config.duration_samples
        losses = "  ".join(f"{name} {value:.4g}" for name, value in self._losses())
        self._console.print(
            f"samples {self._row['samples']:,}/{total:,}  {self._speed():,.0f}/s  ETA {self._eta()}  {losses}",
            highlight=False,
            soft_wrap=True,
        )

    def _render(self) -> Group:
        self._progress.update(
            self._task, completed=self._row["samples"], speed=f"{self._speed():,.0f}/s", eta=self._eta()
        )
        table = Table.grid(padding=(0, 2))
        for name, value in self._losses():
            table.add_row(name, f"{value:.5g}")
        picture = newest_picture(self._run.path)
        table.add_row("picture", str(picture) if picture else f"none yet ({time.monotonic() - self._start:.0f} s)")
        return Group(self._progress, table)

    def _losses(self) -> list[tuple[str, float]]:
        return [(name, value) for name, value in self._row.items() if not name.startswith(("samples", "speed/"))]

    def _speed(self) -> float:
        return float(self._row.get("speed/samples_per_sec", 0.0))

    def _eta(self) -> str:
        left, speed = self._run.config.duration_samples - self._row["samples"], self._speed()
        if not speed:
            return "?"
        minutes, seconds = divmod(round(max(0, left) / speed), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
