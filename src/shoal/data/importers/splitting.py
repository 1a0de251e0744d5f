"""Divide the rows of ``train`` by what they are, so that equal images land in the same split."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from shoal.data.importers.source import Rows
from shoal.errors import DataError

DIVIDED = "train"
"""The split of a source whose rows are divided."""

TOLERANCE = 1e-9

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


class Shares:
    """Names of splits with the share of the rows that each gets.

    A row whose xxh3_64 is h goes to the first split whose cumulated share is above h / 2**64. Shares are what a large
    source comes to on average: of n rows, a share p gets about n p, give or take sqrt(n p (1 - p)).
    """

    def __init__(self, shares: Mapping[str, float]) -> None:
        """Check the shares. Raises DataError for names that are not plain and shares that do not make up a whole."""
        text = ",".join(f"{name}={share:g}" for name, share in shares.items())
        for name, share in shares.items():
            if not _NAME.fullmatch(name):
                raise DataError(
                    f"--split {text}: '{name}' is no name for a split; use a letter, then letters, digits, - _"
                )
            if not 0 < share <= 1:
                raise DataError(f"--split {text}: the share {share:g} of {name} must be above 0 and at most 1")
        total = math.fsum(shares.values())
        if abs(total - 1) > TOLERANCE:
            raise DataError(f"--split {text}: the shares add up to {total:g}, not to 1; e.g. train=0.9,val=0.1")
        self.by_name = dict(shares)
        ends = np.cumsum(list(shares.values()))[:-1]
        self._ends = np.array([min(int(end * 2**64), 2**64 - 1) for end in ends.tolist()], np.uint64)

    def splits_of(self, splits: Sequence[str]) -> list[str]:
        """Return the splits of the data set that a source's ``splits`` make. Raises DataError where they clash."""
        if DIVIDED not in splits:
            raise DataError(f"--split divides '{DIVIDED}', but the source has {', '.join(splits)}; leave it out")
        if taken := [name for name in self.by_name if name != DIVIDED and name in splits]:
            raise DataError(f"--split: the source has a split '{taken[0]}' of its own; choose another name")
        return [name for split in splits for name in (self.by_name if split == DIVIDED else [split])]

    def divide(self, rows: Rows) -> list[Rows]:
        """Return the rows as those of each of the splits, in the order of the shares, where there are any."""
        if rows.split != DIVIDED:
            return [rows]
        places = np.searchsorted(self._ends, _hashes(rows), side="right")
        return [pick(rows, np.flatnonzero(places == i), name) for i, name in enumerate(self.by_name) if i in places]


def parse_shares(text: str) -> Shares:
    """Return what ``train=0.9,val=0.1`` says. Raises DataError."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, equals, share = (piece.strip() for piece in part.partition("="))
        try:
            number = float(share)
        except ValueError:
            number = math.nan
        if not equals or math.isnan(number):
            raise DataError(f"--split {text}: '{part.strip()}' is not NAME=SHARE; give e.g. train=0.9,val=0.1")
        if name in shares:
            raise DataError(f"--split {text}: '{name}' is there twice; name each split once")
        shares[name] = number
    return Shares(shares)


def pick(rows: Rows, where: NDArray[np.intp] | slice, split: str | None = None) -> Rows:
    """Return some of the rows, in their order, as rows of ``split``; nothing that was skipped is counted again."""
    if isinstance(rows.images, np.ndarray):
        images: NDArray[np.uint8] | Sequence[bytes] = rows.images[where]
    else:
        images = rows.images[where] if isinstance(where, slice) else [rows.images[i] for i in where]
    labels = None if rows.labels is None else np.asarray(rows.labels)[where]
    return Rows(split or rows.split, images, labels)


def _hashes(rows: Rows) -> NDArray[np.uint64]:
    digest = xxhash.xxh3_64_intdigest
    images = np.ascontiguousarray(rows.images) if isinstance(rows.images, np.ndarray) else rows.images
    return np.array([digest(image) for image in images], np.uint64)
