"""Measure what a checkpoint costs the training: ``shoal.execute`` with checkpoints, side by side with none.

Two ways. The whole: pairs of runs of the same length, turn and turn about, of which one saves itself again and again;
the time is taken from the first row of its metrics to the last, so it counts all that the writing slows down: by the
clock, and by the processor's time of all threads, which other work on the machine changes less. One checkpoint in half
a minute would be lost in the noise of the machine, so there are many, and the difference is shared out among them. The
parts: how long the state takes to be copied, for which training waits, and to be written, for which it does not.

    python benchmarks/checkpointing.py --data data/fashion-mnist --preset autoencoder
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from shoal.checkpoint import TENSORS, Saver
from shoal.config import read_config
from shoal.execute import execute, prepare
from shoal.loop import Tick
from shoal.run import Run
from shoal.session import Session
from shoal.storage.location import Location
from shoal.world import World

EVERY_SEC = 30.0
PAIRS = 4
ROWS = 20
"""Of a run's metrics."""
CHECKPOINTS = 10
"""Of a run that saves itself; the last one, at its end, is not counted."""
COPIES = 10
ALONE = World.local()
QUIET = ("report.images_every_samples=0", "report.quality_every_samples=0", "checkpoint.keep=1")
"""What else a run does at times would blur what its checkpoints cost."""


@dataclass(frozen=True)
class Cost:
    """What checkpoints cost a preset.

    Attributes:
        preset: its name.
        num_bytes: of a checkpoint.
        copy_sec: while training waits, median and worst.
        write_sec: beside it, to the disk and durable, median and worst.
        extra_sec: of each pair of runs, the time by which a checkpoint makes the one with them take longer.
        extra_cpu_sec: the same of the processor's time.
        load: of the machine before and after: one that has other things to do measures nothing.
    """

    preset: str
    num_bytes: int
    copy_sec: tuple[float, float]
    write_sec: tuple[float, float]
    extra_sec: Sequence[float]
    extra_cpu_sec: Sequence[float]
    load: tuple[float, float]


def parts(preset: str, data: Path, folder: Path) -> tuple[int, list[float], list[float]]:
    """Return the bytes of a checkpoint, and how long it took to copy and to write."""
    config = read_config(preset, QUIET)
    copying, writing = list[float](), list[float]()
    with Session(config, Location.parse(data), ALONE) as session:
        list(session.advance(config.batch * 2, ends=False))  # so that the optimizers have their state
        for number in range(COPIES):
            begin = time.perf_counter()
            copy = Saver(session._state.tensors(), session.facts()).copied()
            copied = time.perf_counter()
            copy(folder / f"{number}")
            copying.append(copied - begin)
            writing.append(time.perf_counter() - copied)
    return (folder / "0" / TENSORS).stat().st_size, copying, writing


@dataclass(frozen=True)
class Span:
    """How long a run took from the first row of its metrics to the last: by the clock, and of the processor's time."""

    sec: float
    cpu_sec: float


def span(preset: str, data: Path, folder: Path, samples: int, *, saves: bool) -> Span:
    """Return how long a run of so many samples took."""
    every = samples // CHECKPOINTS if saves else 0
    changes = (
        f"duration_samples={samples}",
        f"report.every_samples={samples // ROWS}",
        f"checkpoint.every_samples={every}",
    )
    run = Run.create(folder, read_config(preset, (*QUIET, *changes)), data)
    marks: list[Span] = []

    def mark(tick: Tick) -> None:
        # The last tick's own checkpoint is made in either run, and after this only.
        marks.append(Span(time.perf_counter(), time.process_time()))

    execute(run, ALONE, on_tick=mark)
    return Span(marks[-1].sec - marks[0].sec, marks[-1].cpu_sec - marks[0].cpu_sec)


def pairs(preset: str, data: Path, folder: Path, seconds: float, number: int) -> Iterator[tuple[Span, Span]]:
    """Yield how long runs take without and with checkpoints, of about so many seconds each."""
    unit = ROWS * read_config(preset).batch  # so that rows and checkpoints fall on whole batches
    samples = unit
    for guess_sec in (seconds / 10, seconds):
        guess = span(preset, data, folder / f"guess-{guess_sec}", samples, saves=False)
        samples = max(1, round(guess_sec / guess.sec * samples / unit)) * unit
    for pair in range(number):
        found = {
            saves: span(preset, data, folder / f"{pair}-{saves}", samples, saves=saves)
            for saves in ((False, True) if pair % 2 else (True, False))
        }
        yield found[False], found[True]


def measure(preset: str, data: Path, folder: Path, seconds: float, number: int) -> Cost:
    """Return what checkpoints cost a preset."""
    before = os.getloadavg()[0]
    num_bytes, copying, writing = parts(preset, data, folder / "parts")
    spans = list(pairs(preset, data, folder, seconds, number))
    return Cost(
        preset=preset,
        num_bytes=num_bytes,
        copy_sec=(median(copying), max(copying)),
        write_sec=(median(writing), max(writing)),
        extra_sec=[(saving.sec - plain.sec) / (CHECKPOINTS - 1) for plain, saving in spans],
        extra_cpu_sec=[(saving.cpu_sec - plain.cpu_sec) / (CHECKPOINTS - 1) for plain, saving in spans],
        load=(before, os.getloadavg()[0]),
    )


def in_ms(seconds: tuple[float, float]) -> str:
    """Return a median and a worst case in words."""
    return f"{seconds[0] * 1e3:.0f} ms (worst {seconds[1] * 1e3:.0f})"


def in_seconds(extra: Sequence[float]) -> str:
    """Return the median of what a checkpoint costs, all of them, and its share of the time between two, in words."""
    return (
        f"{median(extra):.2f} s ({', '.join(f'{each:.2f}' for each in extra)}),"
        f" one in {EVERY_SEC:.0f} s {median(extra) / EVERY_SEC:+.1%}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a data set of 28x28 or 32x32 images")
    parser.add_argument("--preset", action="append", help="may be repeated (default: autoencoder)")
    parser.add_argument("--seconds", type=float, default=EVERY_SEC, help="of a run")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write the figures there too")
    given = parser.parse_args()
    prepare(ALONE.device)
    torch.set_num_threads(given.threads)
    costs = []
    for preset in given.preset or ["autoencoder"]:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            costs.append(measure(preset, given.data, Path(folder), given.seconds, given.pairs))
        cost = costs[-1]
        print(
            f"{preset}: {cost.num_bytes / 1e6:.1f} MB; copied in {in_ms(cost.copy_sec)}, written in"
            f" {in_ms(cost.write_sec)}; it costs {in_seconds(cost.extra_sec)} by the clock,"
            f" {in_seconds(cost.extra_cpu_sec)} by the processor's time; {platform.machine()}, {given.threads} threads,"
            f" load {cost.load[0]:.1f} to {cost.load[1]:.1f}"
        )
    if given.json:
        given.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=1))


if __name__ == "__main__":
    main()
