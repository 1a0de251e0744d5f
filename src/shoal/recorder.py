"""What the first worker writes of every tick: the metrics row, the pictures, the checkpoint, and to other sinks."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from PIL import Image

from shoal import checkpoint
from shoal.files import atomic_file, write_text
from shoal.loop import Tick
from shoal.run import METRICS, Run, read_rows


class Sink(Protocol):
    """Somewhere else that ticks are shown, e.g. TensorBoard."""

    def write(self, tick: Tick) -> None:
        """Show a tick."""

    def close(self) -> None:
        """Finish."""


class Recorder:
    """Writes a run's ticks into its directory; one worker holds one, for the whole run.

    Args:
        run: the run.
        samples: the clock that the run goes on from. Rows of a later sample are dropped: they tell of steps that were
            lost and are about to be taken again.
        sinks: closed with the recorder.
    """

    def __init__(self, run: Run, *, samples: int = 0, sinks: Sequence[Sink] = ()) -> None:
        self._run = run
        self._sinks = sinks
        path = run.path / METRICS
        kept = [row for row in read_rows(path) if _clock(row) <= samples]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        if path.is_file() and path.read_bytes() != text.encode():  # lost steps, half a row, or what is no row at all
            write_text(path, text)
        self._metrics = path.open("a")

    def record(self, tick: Tick) -> None:
        """Write a tick. The checkpoint comes last, so that no row before it can be missing."""
        self._metrics.write(json.dumps({"samples": tick.samples, **tick.scalars}) + "\n")
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        for name, picture in tick.images.items():
            save_png(self._run.path / f"{name}-{checkpoint.directory_name(tick.samples)}.png", picture)
        for sink in self._sinks:
            sink.write(tick)
        if tick.save is not None:
            folder = self._run.checkpoints
            tick.save(folder / checkpoint.directory_name(tick.samples))
            checkpoint.prune(folder, self._run.config.checkpoint.keep, now=tick.samples)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files and the sinks."""
        with suppress(OSError):  # every row was flushed when it was recorded, or its failure was told then
            self._metrics.close()
        for sink in self._sinks:
            sink.close()


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
