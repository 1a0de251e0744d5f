"""Measure how fast images are read in random order, by Shoal and by others, turn and turn about on one core.

Two sets of images: Fashion-MNIST (28x28x1) and generated ones (64x64x3), each written once in every format. Counted are
the CPU time of a reader's process, all its threads together, and the clock.
"""

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import torch
from reader_contenders import BATCH, READERS, WINDOW_BLOCKS, Batches, Reader
from reader_formats import Source, generated
from throughput import describe_machine

from shoal.data import DataSet
from shoal.memory import keep_freed_memory

PACKAGES = (
    "litdata mosaicml-streaming webdataset braceexpand brotli catalogue cramjam 'huggingface_hub<1' obstore "
    "python-snappy tifffile 'tokenizers<0.23' 'transformers<5' zstd"
)
"""What the others need and Shoal has not: without their dependencies, so that torch and numpy stay as they are."""

FORK = get_context("fork")
"""The images are in memory once for all readers."""

WARM_UP_SEC = 3.0
"""At most so much for the first epoch of a reader, which is not measured: Shoal compares checksums in it."""

TARGETS: tuple[tuple[str, str, Mapping[str, float]], ...] = (
    ("shoal", "p", {"28x28x1": 0.60, "64x64x3": 0.60}),
    ("shoal-shards", "p", {"28x28x1": 0.60, "64x64x3": 0.60}),
    ("shoal-uint8", "gather", {"28x28x1": 0.50, "64x64x3": 0.50}),
    ("shoal-jpeg", "decode", {"28x28x1": 0.95, "64x64x3": 0.95}),
    ("shoal", "litdata", {"28x28x1": 20, "64x64x3": 3}),
    ("shoal", "mosaicml", {"28x28x1": 100}),
)
"""How many times as fast as another one a reader is to be, by CPU time."""


@dataclass(frozen=True)
class Trial:
    """One reader in one round: images per second of CPU time, and by the clock."""

    per_cpu_sec: float
    per_sec: float


Trials = Mapping[str, Sequence[Trial]]


def cpu_sec(*, descendants: bool = False) -> float:
    """Return the CPU time so far of this process, or with those of all processes that stem from it."""
    if not descendants:
        return time.process_time()
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()  # after the name, which may hold anything
            process = int(path.parent.name)
            parents[process], ticks[process] = int(fields[1]), int(fields[11]) + int(fields[12])
    family = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(ticks[process] for process in family) / os.sysconf("SC_CLK_TCK")


def measure(reader: Reader, batches: Batches, sec: float) -> Trial:
    """Read for so long; before that a fifth of it unmeasured, so that no reader lives on what it has read ahead."""
    now = partial(cpu_sec, descendants=reader.name == "ray")
    settled = now() + sec / 5
    while now() < settled:
        next(batches)
    num, at_once = 0, 1
    began, began_cpu = time.perf_counter(), now()
    while (used := now() - began_cpu) < sec:
        for _ in range(at_once):
            next(batches)
        num += at_once
        at_once = min(2 * at_once, 16) if used < sec / 10 else at_once
    return Trial(num * BATCH / used, num * BATCH / (time.perf_counter() - began))


def warm_up(source: Source, batches: Batches) -> None:
    """Read an epoch, or for a few seconds."""
    began = time.perf_counter()
    for _ in range(len(source.images) // BATCH + 1):
        next(batches)
        if time.perf_counter() - began > WARM_UP_SEC:
            break


class Seat:
    """A reader in a process of its own, which is stopped while it is not its turn.

    In one process the threads of one reader would be charged to the next: MosaicML's go on for a while.
    """

    def __init__(self, source: Source, reader: Reader) -> None:
        self._pipe, child = FORK.Pipe()
        self._process = FORK.Process(target=_sit, args=(source, reader, child))
        self._process.start()
        child.close()
        self._pipe.recv()  # it is warm
        self._signal(signal.SIGSTOP)

    def measure(self, sec: float) -> Trial:
        """Let it read. Raises EOFError where the process has died, which says why itself."""
        self._signal(signal.SIGCONT)
        self._pipe.send(sec)
        trial: Trial = self._pipe.recv()
        self._signal(signal.SIGSTOP)
        return trial

    def leave(self) -> None:
        """End the process."""
        self._signal(signal.SIGCONT)
        self._pipe.send(None)
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)


def _sit(source: Source, reader: Reader, pipe: Connection) -> None:
    batches = reader.open(source)
    warm_up(source, batches)
    pipe.send(None)
    while (sec := pipe.recv()) is not None:
        pipe.send(measure(reader, batches, sec))
    batches.close()  # type: ignore[attr-defined]  # they are generators


def contest(source: Source, readers: Sequence[Reader], rounds: int, sec: float) -> Trials:
    """Let all readers read turn and turn about."""
    seats: dict[str, Seat] = {}
    trials: dict[str, list[Trial]] = {reader.name: [] for reader in readers}
    try:
        for reader in readers:
            tell(f"{'x'.join(map(str, source.shape))}: {reader.label}")
            seats[reader.name] = Seat(source, reader)
        for number in range(rounds):
            tell(f"round {number + 1} of {rounds}")
            shift = number % len(readers)
            for reader in (*readers[shift:], *readers[:shift]):  # none is always the first
                trials[reader.name].append(seats[reader.name].measure(sec))
    finally:
        for seat in seats.values():
            seat.leave()
    return trials


def tell(what: str) -> None:
    """Say what is being done."""
    print(what, file=sys.stderr, flush=True)


def ratios(trials: Trials, one: str, other: str, attribute: str = "per_cpu_sec") -> list[float]:
    """Return how many times as fast one reader was as another, round by round."""
    pairs = zip(trials[one], trials[other], strict=True)
    return [getattr(this, attribute) / getattr(that, attribute) for this, that in pairs]


def spread(values: Sequence[float], form: str) -> str:
    """Return the median with the smallest and the largest."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def table(trials: Trials, readers: Sequence[Reader]) -> Iterator[str]:
    """Yield a Markdown table, a row for each reader."""
    yield "| reader | images per CPU-second | images/s | of its baseline, CPU | by the clock | Shoal is faster by |"
    yield "|---|---:|---:|---:|---:|---:|"
    for reader in readers:
        ours = (
            "shoal-uint8" if reader.baseline == "gather" else "shoal-jpeg" if reader.baseline == "decode" else "shoal"
        )
        has = reader.baseline in trials
        cells = [
            spread([trial.per_cpu_sec for trial in trials[reader.name]], ",.0f"),
            f"{median(trial.per_sec for trial in trials[reader.name]):,.0f}",
            spread(ratios(trials, reader.name, reader.baseline), ".3g") if has else "-",
            f"{median(ratios(trials, reader.name, reader.baseline, 'per_sec')):.3g}" if has else "-",
            f"{median(ratios(trials, ours, reader.name)):.3g}" if ours in trials else "-",
        ]
        yield f"| {reader.label} | {' | '.join(cells)} |"


def targets(trials: Trials, size: str) -> Iterator[str]:
    """Yield a Markdown table of what Shoal is to reach."""
    yield "| by CPU time | target | measured | |"
    yield "|---|---:|---:|---|"
    labels = {reader.name: reader.label for reader in READERS}
    for ours, other, least in TARGETS:
        if size in least and ours in trials and other in trials:
            found = ratios(trials, ours, other)
            verdict = "met" if median(found) >= least[size] else "**missed**"
            what = f"{labels[ours]} / {labels[other]}"
            yield f"| {what} | {least[size]:g} | {spread(found, '.3g')} | {verdict} |"


def sources(data: Path, folder: Path, num_generated: int) -> dict[str, Source]:
    """Return both sets of images."""
    fashion = DataSet.open(data)
    labels = fashion.labels("train")
    if fashion.shape != (1, 28, 28) or labels is None:
        sys.exit(f"--data {data} has images of {fashion.shape}; give labelled ones of (1, 28, 28): Fashion-MNIST")
    images = fashion.rows("train", 0, fashion.num_rows("train"))
    return {
        "28x28x1": Source(folder / "28x28x1", images, labels.astype("int64")),
        "64x64x3": Source(folder / f"64x64x3-{num_generated}", *generated(num_generated, 64)),
    }


def main() -> None:
    """Hold the contest at both sizes and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="Fashion-MNIST as a data set")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of CPU time, for each reader in each round")
    parser.add_argument("--generated", type=int, default=20_000, help="images of 64x64x3")
    parser.add_argument("--size", choices=["28x28x1", "64x64x3"], help="only this one")
    parser.add_argument("--only", nargs="+", choices=[reader.name for reader in READERS], help="some of the readers")
    parser.add_argument("--ray", action="store_true", help="Ray Data too: starts Ray on this machine")
    parser.add_argument("--others-path", type=Path, default=Path("build/readers-packages"), help="where the others are")
    parser.add_argument("--out", type=Path, default=Path("build/readers"), help="folder of the images in all formats")
    parser.add_argument("--json", action="store_true", help="print every trial instead of tables")
    asked = parser.parse_args()
    sys.path.append(str(asked.others_path.absolute()))  # the last: torch, numpy and all of ours stay what they are
    readers = [reader for reader in READERS if asked.only is None or reader.name in asked.only]
    readers = [reader for reader in readers if reader.name != "ray" or asked.ray]
    missing = [reader.label for reader in readers if reader.package and find_spec(reader.package) is None]
    if missing:
        install = f"{sys.executable} -m pip install --no-deps --target {asked.others_path} {PACKAGES}"
        tell(f"left out: {', '.join(missing)}. To have them, into a folder of their own:\n{install}")
        readers = [reader for reader in readers if reader.label not in missing]
    machine = describe_machine()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # one core: threads share it, as the clock is to show
    torch.set_num_threads(1)
    keep_freed_memory()  # as `shoal train` does
    found: dict[str, Trials] = {}
    for size, source in sources(asked.data, asked.out, asked.generated).items():
        if asked.size in (None, size):
            found[size] = contest(source, readers, asked.rounds, asked.seconds)
    command = shlex.join(["python", "benchmarks/readers.py", *sys.argv[1:]])
    if asked.json:
        raw = {size: {name: list(map(asdict, rows)) for name, rows in trials.items()} for size, trials in found.items()}
        print(json.dumps({"command": command, "machine": machine, "trials": raw}, indent=1))
        return
    print(
        f"`{command}` on {machine}. Batches of {BATCH}, windows of {WINDOW_BLOCKS} blocks; one core, one torch thread;"
    )
    print(f"the median of {asked.rounds} rounds of {asked.seconds:g} s of CPU time, and the range.")
    for size, trials in found.items():
        print("", f"## {size}", "", *table(trials, readers), "", *targets(trials, size), sep="\n")


if __name__ == "__main__":
    main()
