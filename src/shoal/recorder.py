"""What the first worker writes of every tick: the metrics row, the pictures, and to other sinks."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from PIL import Image

from shoal.checkpoint import directory_name
from shoal.files import atomic_file, write_text
from shoal.growing_file import GrowingFile
from shoal.loop import Tick
from shoal.run import METRICS, Run, read_rows


class Sink(Protocol):
    """Somewhere else that ticks are shown, e.g. TensorBoard."""

    def write(self, tick: Tick) -> None:
        """Show a tick; what the storage refuses is kept for the next call."""

    def close(self) -> None:
        """Finish."""


class Recorder:
    """Writes a run's ticks into its directory; one worker holds one, for the whole run.

    Args:
        run: the run.
        samples: the clock that the run goes on from. Rows of a later sample are dropped: they tell of steps that were
            lost and are about to be taken again.
        sinks: closed with the recorder.
        check: called before anything is written; what it raises keeps it from being so.

    Attributes:
        redone: samples from ``samples`` to the last row that was dropped.
        lags: whether the last tick was refused somewhere.
    """

    def __init__(
        self,
        run: Run,
        *,
        samples: int = 0,
        sinks: Sequence[Sink] = (),
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._run = run
        self._sinks = sinks
        self._check = check
        path = run.path / METRICS
        rows = [row for row in read_rows(path) if _clock(row) < math.inf]
        self.redone = max([0, *(int(_clock(row)) - samples for row in rows)])
        # Always a new file: an earlier incarnation that was only cut off finds its own gone, and the run lost to it.
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows if _clock(row) <= samples))
        self._metrics = GrowingFile(path, durable=True, check=check)
        self.lags = False

    @property
    def waits(self) -> bool:
        """Whether there are rows that could not be written yet."""
        return self._metrics.waits

    def record(self, tick: Tick) -> None:
        """Write a tick.

        Raises:
            OSError: the storage refuses. Its row waits for the next call, or `flush`; pictures are lost.
        """
        row = {"samples": tick.samples, "time": round(time.time(), 3), **tick.scalars}
        self._metrics.write(json.dumps(row).encode() + b"\n")
        problem: OSError | None = None
        try:
            self._check()
            self._metrics.flush()
            for name, picture in tick.images.items():
                save_png(self._run.path / f"{name}-{directory_name(tick.samples)}.png", picture)
        except OSError as error:
            problem = error
        for sink in self._sinks:
            try:
                sink.write(tick)
            except OSError as error:
                problem = problem or error
        self.lags = problem is not None
        if problem is not None:
            raise problem

    def flush(self) -> None:
        """Write the rows that wait.

        Raises:
            OSError: the storage still refuses.
        """
        if self._metrics.waits:
            self._check()
            self._metrics.flush()

    def close(self) -> None:
        """Close the files and the sinks.

        Raises:
            OSError: a sink could not finish; all are closed.
        """
        self._metrics.close()
        problem: OSError | None = None
        for sink in self._sinks:
            try:
                sink.close()
            except OSError as error:
                problem = error
        if problem is not None:
            raise problem

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def save_png(path: Path, picture: np.ndarray) -> None:
    """Write uint8 [H, W, C] with 1 or 3 channels as a PNG."""
    with atomic_file(path) as file:
        file.write(png(picture))


def png(picture: np.ndarray) -> bytes:
    """Return uint8 [H, W, C] with 1 or 3 channels as the bytes of a PNG."""
    file = BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).save(file, format="PNG")
    return file.getvalue()


def _clock(row: Mapping[str, Any]) -> float:
    """Return a row's sample; a row without one is of no use later either."""
    samples = row.get("samples")
    return samples if isinstance(samples, int) else math.inf


def newest_picture(run: Path) -> Path | None:
    """Return the picture that a run wrote last."""
    pictures = sorted((run / "images").glob("*.png"), key=lambda path: (path.stem.rpartition("-")[2], path.name))
    return pictures[-1] if pictures else None


def last_row(run: Path) -> Mapping[str, float]:
    """Return the newest metrics row of a run directory, or an empty mapping."""
    rows = read_rows(run / METRICS)
    return rows[-1] if rows else {}
