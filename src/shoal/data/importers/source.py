"""What an importer is: something that reads images in units, always the same ones in the same order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rows:
    """Some rows of one split, in their order.

    Attributes:
        split: that they belong to.
        images: uint8 [n, C, H, W], or n PNG or JPEG files as bytes where the source is ``encoded``.
        labels: integers [n], -1 for none, or None in a source without classes.
        num_skipped: unreadable images that were left out between these rows.
    """

    split: str
    images: NDArray[np.uint8] | Sequence[bytes]
    labels: NDArray[np.integer] | None = None
    num_skipped: int = 0

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.images)


class Source(Protocol):
    """Images to be imported.

    Units are read in any process, several at a time, and their rows are put into the data set in the order of the
    units. Reading a unit again gives the same rows, which is what makes an import resumable and a shard repairable.
    Sources can be pickled; they hold paths and settings, no open files.
    """

    @property
    def kind(self) -> str:
        """The importer's name, e.g. ``parquet``."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""

    @property
    def class_names(self) -> Sequence[str] | None:
        """None for a source without labels."""

    @property
    def encoded(self) -> bool:
        """Whether ``Rows.images`` are files instead of pixels."""

    @property
    def splits(self) -> Sequence[str]:
        """The splits, in the order of the data set; every one that ``read`` may speak of."""

    @property
    def units(self) -> Sequence[Any]:
        """What can be read apart from the others: small, picklable descriptions of some 16 MiB of rows.

        Larger ones are read one after another: rows wait in memory for those before them. Where a unit has an attribute
        ``split``, all its rows are of that split, and an import with a limit need not read those it has enough of.
        """

    @property
    def num_rows(self) -> int | None:
        """The rows of all units together, None where that is not known before they are read."""

    def read(self, unit: Any) -> Iterator[Rows]:
        """Yield the rows of a unit, in pieces of at most a few MiB. Raises DataError for what cannot be read."""
