"""Measure what checking, resuming and larger windows cost a reader, and how much memory it takes."""

import argparse
import os
import resource
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from reader_contenders import BATCH, WINDOW_BLOCKS
from reader_formats import Source
from readers import sources, spread, tell
from throughput import describe_machine

from shoal.data import DataSet, Stream
from shoal.data.shard import BlockRows
from shoal.memory import keep_freed_memory

WINDOWS = (1, 4, 16, 64, 256)
EPOCHS = 5
CAP_BYTES = 40 << 20
MOST_CHECKING, MOST_RESUME_MS = 0.35, 50


@dataclass(frozen=True)
class Cost:
    """CPU time and time by the clock, in ms."""

    cpu_ms: float
    ms: float


class Stopwatch:
    """Time since it was made or last read."""

    def __init__(self) -> None:
        self._began, self._began_cpu = time.perf_counter(), time.process_time()

    def lap(self) -> Cost:
        """Return the time since the last lap."""
        now, now_cpu = time.perf_counter(), time.process_time()
        cost = Cost((now_cpu - self._began_cpu) * 1e3, (now - self._began) * 1e3)
        self._began, self._began_cpu = now, now_cpu
        return cost


def stream(data: DataSet, window_blocks: int = WINDOW_BLOCKS) -> Stream:
    """Return a stream of the whole batches at the start of the order."""
    settings = {"split": "train", "batch": BATCH, "seed": 0, "shuffle_window_blocks": window_blocks}
    return Stream(data, **settings, rows=slice(0, BATCH))  # type: ignore[arg-type]  # of several types


def epochs(source: Source, window_blocks: int = WINDOW_BLOCKS) -> list[Cost]:
    """Return what each of the first epochs costs when the data set has just been opened."""
    data = DataSet.open(source.path("shoal"))
    costs = []
    with stream(data, window_blocks) as batches:
        watch = Stopwatch()
        for _ in range(EPOCHS):
            for _ in range(data.num_rows("train") // BATCH):
                next(batches)
            costs.append(watch.lap())
    return costs


def resumed(source: Source, position: int, window_blocks: int) -> Cost:
    """Return what it costs to open the data set, go on from a state at ``position``, and have the first batch."""
    state = stream(DataSet.open(source.path("shoal")), window_blocks)
    state.close()
    at = state.state() | {"position": position}
    watch = Stopwatch()
    with Stream.resume(DataSet.open(source.path("shoal")), at, rows=slice(0, BATCH)) as batches:
        next(batches)
        return watch.lap()


def anonymous_bytes() -> int:
    """Return the memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def private_bytes() -> int:
    """Return the memory that RLIMIT_DATA counts: of this process alone, and writable."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmData:"))


def growth(path: Path, parts: int = 8) -> list[int]:
    """Return by how much the anonymous memory has grown after each part of three epochs, under a cap.

    The cap is CAP_BYTES more than the process has, mapped files apart: more is refused by the kernel.
    """
    prepare()
    data = DataSet.open(path)
    num = data.num_rows("train") // BATCH
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (private_bytes() + CAP_BYTES, hard))
    before = anonymous_bytes()
    grown = []
    with stream(data) as batches:
        for _ in range(3 * parts):
            for _ in range(num // parts):
                next(batches)
            grown.append(anonymous_bytes() - before)
    return grown


def checking(source: Source, rounds: int) -> Iterator[str]:
    """Yield what checking costs: first epochs with and without it, which touch the same pages for the first time."""
    checked, unchecked = [], []
    for _ in range(rounds):
        checked.append(epochs(source))
        with patch.object(BlockRows, "problem", lambda rows, block: None):
            unchecked.append(epochs(source))
    yield "| epoch | CPU ms, checked | CPU ms, unchecked |"
    yield "|---:|---:|---:|"
    for epoch in range(EPOCHS):
        cells = [spread([costs[epoch].cpu_ms for costs in found], ".1f") for found in (checked, unchecked)]
        yield f"| {epoch + 1} | {' | '.join(cells)} |"
    shares = [1 - without[0].cpu_ms / costs[0].cpu_ms for costs, without in zip(checked, unchecked, strict=True)]
    more = [1 - median(cost.cpu_ms for cost in costs[1:]) / costs[0].cpu_ms for costs in checked]
    last = [costs[-1].cpu_ms / costs[1].cpu_ms for costs in checked]
    verdict = "met" if median(shares) <= MOST_CHECKING else "**missed**"
    yield ""
    yield f"Checking is {spread(shares, '.0%')} of the first epoch (at most {MOST_CHECKING:.0%}: {verdict})."
    yield f"With the first touch of each page {spread(more, '.0%')} of it is more than later epochs take."
    yield f"The last epoch takes {spread(last, '.2f')} of the second."


def windows(source: Source, rounds: int) -> Iterator[str]:
    """Yield how fast windows are read, and how soon the first batch after a resume is there."""
    rows = len(source.images)
    places = {"first": 0, "middle": rows // 2 // BATCH * BATCH, "last": (rows // BATCH - 1) * BATCH}
    speeds: dict[int, list[float]] = defaultdict(list)
    firsts: dict[tuple[int, str], list[Cost]] = defaultdict(list)
    for _ in range(rounds):
        for window in WINDOWS:
            later = median(cost.cpu_ms for cost in epochs(source, window)[1:])
            speeds[window].append(rows / later * 1e3)
            for place, position in places.items():
                firsts[window, place].append(resumed(source, position, window))
    yield f"| window, blocks | images per CPU-second | {' | '.join(f'ms to the {place} batch' for place in places)} |"
    yield "|---:|---:|" + "---:|" * len(places)
    for window in WINDOWS:
        cells = [spread(speeds[window], ",.0f")]
        for place in places:
            costs = firsts[window, place]
            cpu_ms = median(cost.cpu_ms for cost in costs)
            cells.append(f"{spread([cost.ms for cost in costs], '.1f')}; CPU {cpu_ms:.1f}")
        yield f"| {window} | {' | '.join(cells)} |"
    slowest = max(median(cost.ms for cost in firsts[WINDOW_BLOCKS, place]) for place in places)
    yield ""
    verdict = "met" if slowest <= MOST_RESUME_MS else "**missed**"
    yield f"With {WINDOW_BLOCKS} blocks {slowest:.1f} ms (at most {MOST_RESUME_MS}: {verdict})."


def memory(source: Source) -> Iterator[str]:
    """Yield the anonymous memory over three epochs, of a fresh process: an older one has freed memory to fill first."""
    with get_context("spawn").Pool(1) as pool:
        try:
            grown = pool.apply(growth, (source.path("shoal"),))
        except RuntimeError as error:  # torch's, of the kernel's refusal
            yield f"**Missed**: {source.images.nbytes / 1e6:,.0f} MB need more than {CAP_BYTES >> 20} MiB: {error}"
            return
    megabytes = ", ".join(f"{grew / 1e6:.1f}" for grew in grown)
    yield f"Three epochs of {source.images.nbytes / 1e6:,.0f} MB, with at most {CAP_BYTES >> 20} MiB of writable memory"
    yield f"more than before (RLIMIT_DATA). RssAnon has grown, in MB, after each eighth of an epoch: {megabytes}."


def prepare() -> None:
    """Have one core and one thread of torch, and keep freed memory as `shoal train` does."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    keep_freed_memory()


def main() -> None:
    """Print the costs at both sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="Fashion-MNIST as a data set")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--generated", type=int, default=20_000, help="images of 64x64x3")
    parser.add_argument("--size", choices=["28x28x1", "64x64x3"], help="only this one")
    parser.add_argument("--out", type=Path, default=Path("build/readers"), help="folder of the images in all formats")
    asked = parser.parse_args()
    machine = describe_machine()
    prepare()
    command = shlex.join(["python", "benchmarks/readers_cost.py", *sys.argv[1:]])
    print(f"`{command}` on {machine}. Batches of {BATCH}, uint8, from the page cache; one core, one torch thread;")
    print(f"the median of {asked.rounds} rounds, and the range.")
    for size, source in sources(asked.data, asked.out, asked.generated).items():
        if asked.size in (None, size):
            tell(size)
            print("", f"## {size}", "", *memory(source), "", *checking(source, asked.rounds), "", sep="\n")
            print(*windows(source, asked.rounds), sep="\n", flush=True)


if __name__ == "__main__":
    main()
