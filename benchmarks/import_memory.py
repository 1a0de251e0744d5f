"""How much memory an import takes, and how fast it is: any number of GiB, made up while it is read.

The images are noise of a few patterns, made by as many processes as read files in a real import; nothing of the source
is on the disk. What is measured is anonymous memory (RssAnon), which mapped files and the page cache are not part of:
of the process that writes, and of all processes together.
"""

import argparse
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shoal.data.importers import Rows, run_import
from shoal.data.importers.splitting import Shares

SHAPE = (3, 64, 64)
ROW_BYTES = 3 * 64 * 64
PIECE_ROWS = 256
UNIT_ROWS = 8 * PIECE_ROWS
EVERY_SEC = 0.2


class Part(NamedTuple):
    """Rows ``start .. stop - 1``."""

    split: str
    start: int
    stop: int


@dataclass(frozen=True)
class Noise:
    """``num_rows`` labelled images, all different."""

    num_rows: int
    shape: tuple[int, int, int] = SHAPE
    class_names: Sequence[str] | None = ("even", "odd")
    encoded: bool = False
    splits: Sequence[str] = ("train",)
    kind: str = "noise"

    @property
    def units(self) -> Sequence[Part]:
        """Return parts of 24 MiB."""
        starts = range(0, self.num_rows, UNIT_ROWS)
        return [Part("train", start, min(start + UNIT_ROWS, self.num_rows)) for start in starts]

    def read(self, unit: Part) -> Iterator[Rows]:
        """Yield the rows of a part, in pieces of 3 MiB."""
        pattern = np.random.default_rng(0).integers(0, 256, (PIECE_ROWS, ROW_BYTES), np.uint8)
        for start in range(unit.start, unit.stop, PIECE_ROWS):
            numbers = np.arange(start, min(start + PIECE_ROWS, unit.stop))
            images = pattern[: len(numbers)] + (numbers % 251).astype(np.uint8)[:, None]
            images[:, :8] = numbers.astype("<u8")[:, None].view(np.uint8)
            yield Rows(unit.split, images.reshape(-1, *SHAPE), numbers % 2)


def anonymous_mib(pid: int) -> float:
    """Return the anonymous memory of a process in MiB, 0 where it has ended."""
    try:
        found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Watch:
    """The most memory that was seen, looked at while rows are written."""

    def __init__(self) -> None:
        self.before = anonymous_mib(os.getpid())
        self.writer = self.everyone = 0.0
        self.began = self.looked = time.monotonic()

    def __call__(self, done: int, total: int | None) -> None:
        """Look, every so often."""
        now = time.monotonic()
        if now - self.looked < EVERY_SEC:
            return
        self.looked = now
        mine = anonymous_mib(os.getpid())
        self.writer = max(self.writer, mine)
        self.everyone = max(self.everyone, mine + sum(map(anonymous_mib, children(os.getpid()))))
        if sys.stderr.isatty():
            speed = done / (now - self.began)
            print(f"\r{done:,} of {total:,}, {speed:,.0f}/s, {self.everyone:,.0f} MiB", end="", file=sys.stderr)


def main() -> None:
    """Import, print what it took, and delete what was made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0, help="how much; the disk needs as much room (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("build/import-memory"), help="made, and deleted at the end")
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--split", action="store_true", help="divide into train=0.9,val=0.1")
    args = parser.parse_args()
    source = Noise(int(args.gib * 2**30 / ROW_BYTES))
    shares = Shares({"train": 0.9, "val": 0.1}) if args.split else None
    watch = Watch()
    try:
        manifest, _ = run_import(source, args.out, jobs=args.jobs, split=shares, fresh=True, progress=watch)
        seconds = time.monotonic() - watch.began
    finally:
        shutil.rmtree(args.out, ignore_errors=True)
    gib = manifest.num_rows * ROW_BYTES / 2**30
    print(f"\n{manifest.num_rows:,} images, {gib:.2f} GiB in {seconds:.1f} s: {gib * 1024 / seconds:,.0f} MiB/s")
    print(f"anonymous memory before: {watch.before:,.0f} MiB; most of the writer: {watch.writer:,.0f} MiB")
    print(f"most of all {args.jobs} + 1 processes together: {watch.everyone:,.0f} MiB")


if __name__ == "__main__":
    import import_memory  # the processes that read look for the classes in a module of this name

    import_memory.main()
