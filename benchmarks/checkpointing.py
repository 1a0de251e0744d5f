"""Measure what checkpoints cost the training: ``shoal.execute`` with one every 30 s, side by side with none.

Two ways. The whole: pairs of runs of the same length, turn and turn about, of which one saves itself once on its way;
speed is taken from the first row of its metrics to the last, so it counts all that the writing slows down: by the
clock, and by the processor's time of all threads, which other work on the machine changes less. The parts: how long the
state takes to be copied, for which training waits, and to be written, for which it does not.

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
        overheads: of each pair of runs, the share of its time by which the one with checkpoints takes longer.
        cpu_overheads: the same of the processor's time.
        load: of the machine before and after: one that has other things to do measures nothing.
    """

    preset: str
    num_bytes: int
    copy_sec: tuple[float, float]
    write_sec: tuple[float, float]
    overheads: Sequence[float]
    cpu_overheads: Sequence[float]
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
class Speed:
    """Samples per second of a run: by the clock, and of the processor's time."""

    by_clock: float
    by_cpu: float


def speed(preset: str, data: Path, folder: Path, samples: int, *, saves: bool) -> Speed:
    """Return the speed of a run of so many samples."""
    every = samples // 2 if saves else 0
    changes = (
        f"duration_samples={samples}",
        f"report.every_samples={samples // ROWS}",
        f"checkpoint.every_samples={every}",
    )
    run = Run.create(folder, read_config(preset, (*QUIET, *changes)), data)
    marks: list[tuple[int, float, float]] = []

    def mark(tick: Tick) -> None:
        # The last tick's own checkpoint is made in either run, and after this only.
        marks.append((tick.samples, time.perf_counter(), time.process_time()))

    execute(run, ALONE, on_tick=mark)
    (begin, clock, cpu), (end, later, more) = marks[0], marks[-1]
    return Speed((end - begin) / (later - clock), (end - begin) / (more - cpu))


def pairs(preset: str, data: Path, folder: Path, seconds: float, number: int) -> Iterator[tuple[Speed, Speed]]:
    """Yield the speeds without and with a checkpoint, of runs that take so many seconds each."""
    batch = read_config(preset).batch
    samples = ROWS * batch
    for guess_sec in (seconds / 10, seconds):
        guess = speed(preset, data, folder / f"guess-{guess_sec}", samples, saves=False)
        samples = max(ROWS, round(guess.by_clock * guess_sec / batch)) * batch
    for pair in range(number):
        found = {
            saves: speed(preset, data, folder / f"{pair}-{saves}", samples, saves=saves)
            for saves in ((False, True) if pair % 2 else (True, False))
        }
        yield found[False], found[True]


def measure(preset: str, data: Path, folder: Path, seconds: float, number: int) -> Cost:
    """Return what checkpoints cost a preset."""
    before = os.getloadavg()[0]
    num_bytes, copying, writing = parts(preset, data, folder / "parts")
    speeds = list(pairs(preset, data, folder, seconds, number))
    return Cost(
        preset=preset,
        num_bytes=num_bytes,
        copy_sec=(median(copying), max(copying)),
        write_sec=(median(writing), max(writing)),
        overheads=[without.by_clock / with_one.by_clock - 1 for without, with_one in speeds],
        cpu_overheads=[without.by_cpu / with_one.by_cpu - 1 for without, with_one in speeds],
        load=(before, os.getloadavg()[0]),
    )


def in_ms(seconds: tuple[float, float]) -> str:
    """Return a median and a worst case in words."""
    return f"{seconds[0] * 1e3:.0f} ms (worst {seconds[1] * 1e3:.0f})"


def in_percent(shares: Sequence[float]) -> str:
    """Return the median of some shares, and all of them, in words."""
    return f"{median(shares):+.1%} ({', '.join(f'{share:+.1%}' for share in shares)})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a data set of 28x28 or 32x32 images")
    parser.add_argument("--preset", action="append", help="may be repeated (default: autoencoder)")
    parser.add_argument("--seconds", type=float, default=EVERY_SEC, help="between two checkpoints")
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
            f" {in_ms(cost.write_sec)}; one in {given.seconds:.0f} s costs {in_percent(cost.overheads)} by the clock,"
            f" {in_percent(cost.cpu_overheads)} by the processor's time; {platform.machine()}, {given.threads} threads,"
            f" load {cost.load[0]:.1f} to {cost.load[1]:.1f}"
        )
    if given.json:
        given.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=1))


if __name__ == "__main__":
    main()
