"""A source that makes its images up, for tests of how they are read and written. Other processes import it too."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shoal.data.importers.source import Rows


@dataclass(frozen=True)
class Part:
    """Rows ``start .. stop - 1`` of a split."""

    split: str
    start: int
    stop: int


@dataclass(frozen=True)
class AnyPart:
    """Two parts in one unit, which is therefore of no split that could be known before it is read."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Generated:
    """Row i of a split is noise seeded with i and the split's length; its label is i modulo 3.

    ``tell`` gets a file for each process that reads. The first process to read unit ``dies_at`` kills itself, and
    leaves a file there that keeps later ones alive. From unit ``bad_at`` on labels are out of range.
    """

    rows: dict[str, int]
    unit_rows: int = 7
    piece_rows: int = 3
    shape: tuple[int, int, int] = (1, 4, 5)
    encoded: bool = False
    labelled: bool = True
    mixed: bool = False
    tell: Path | None = None
    dies_at: int | None = None
    bad_at: int | None = None
    kind: str = "generated"

    @property
    def class_names(self) -> Sequence[str] | None:
        return ["a", "b", "c"] if self.labelled else None

    @property
    def splits(self) -> Sequence[str]:
        return list(self.rows)

    @property
    def num_rows(self) -> int | None:
        return sum(self.rows.values())

    @property
    def units(self) -> Sequence[Part | AnyPart]:
        parts = [
            Part(split, start, min(start + self.unit_rows, num))
            for split, num in self.rows.items()
            for start in range(0, num, self.unit_rows)
        ]
        if not self.mixed:
            return parts
        return [AnyPart((one, other)) for one, other in zip(parts, reversed(parts), strict=True)][: len(parts) // 2]

    def read(self, unit: Part | AnyPart) -> Iterator[Rows]:
        number = list(self.units).index(unit)
        if self.tell is not None:
            (self.tell / str(os.getpid())).touch()
            if number == self.dies_at and not (self.tell / "died").exists():
                (self.tell / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        print("what a source prints must not get between its rows", file=sys.stdout, flush=True)
        for part in [unit] if isinstance(unit, Part) else unit.parts:
            for start in range(part.start, part.stop, self.piece_rows):
                stop = min(start + self.piece_rows, part.stop)
                yield self._rows(
                    part.split, start, stop, 100 if self.bad_at is not None and number >= self.bad_at else 0
                )

    def _rows(self, split: str, start: int, stop: int, extra: int) -> Rows:
        labels = np.arange(start, stop) % 3 + extra if self.labelled else None
        images = self.images(split, start, stop)
        files = [image.tobytes()[: 1 + i % 9] for i, image in enumerate(images, start)]
        return Rows(split, files if self.encoded else images, labels, num_skipped=1 if start % 2 else 0)

    def images(self, split: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the images of a split, uint8 [n, C, H, W]; about a tenth of them are the same white one."""
        images = np.empty((stop - start, *self.shape), np.uint8)
        for row in range(start, stop):
            random = np.random.default_rng([self.rows[split], row])
            images[row - start] = random.integers(0, 256, self.shape, np.uint8) if row % 10 else 255
        return images


@dataclass(frozen=True)
class Large:
    """``num_mib`` MiB of images of 3 x 64 x 64 in units of 4 MiB, for measuring memory: made with little work."""

    num_mib: int
    shape: tuple[int, int, int] = (3, 64, 64)
    class_names: Sequence[str] | None = None
    encoded: bool = False
    splits: Sequence[str] = ("train",)
    kind: str = "generated"

    @property
    def num_rows(self) -> int | None:
        return len(self.units) * 340

    @property
    def units(self) -> Sequence[Part]:
        return [Part("train", 340 * i, 340 * (i + 1)) for i in range(self.num_mib // 4)]

    def read(self, unit: Part) -> Iterator[Rows]:
        for start in range(unit.start, unit.stop, 85):
            images = np.full((85, *self.shape), start % 251, np.uint8)
            images.reshape(85, -1)[:, :4] = np.arange(start, start + 85, dtype="<u4")[:, None].view(np.uint8)
            yield Rows("train", images)


def environment() -> dict[str, str]:
    """Return what a script needs to import this module, by its plain name, and all that the tests can import."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


# Other processes must find the classes, and where `tests` is also a package in site-packages they would look in there.
sys.path.append(str(Path(__file__).parent))
sys.modules["generated_source"] = sys.modules[__name__]
for _class in (Part, AnyPart, Generated, Large):
    _class.__module__ = "generated_source"
