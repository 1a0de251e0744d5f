"""Class balance: how many draws of an epoch each class gets, and which of its rows they are.

Integers only, so that the order is the same on every platform.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from shoal.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    from shoal.data.dataset import DataSet

Ids = NDArray[np.int64]
Balance = Literal["none", "uniform", "sqrt"] | dict[str, float]
"""Which share of the draws each class has; ``class_weights`` says what each form means."""

KINDS = ("none", "uniform", "sqrt")
MAX_ROWS = 2**31
"""Rows times draws must stay within 64 bits."""

COUNTED_AT_ONCE = 2**21
"""Blocks times classes: 16 MB of counts."""


@dataclass(frozen=True)
class ClassShare:
    """What an epoch draws of one class: its ``rows`` in the split, and how often any of them is drawn."""

    name: str
    rows: int
    draws: int


class Quotas:
    """The draws of an epoch of a balanced split.

    An epoch of N rows is N draws, of which class c gets exactly ``shares[c].draws``, and each of its rows the floor or
    the ceiling of draws / rows. A row is drawn in the window that its block falls into, so a class that lies in few
    blocks comes in few windows.

    Attributes:
        name: says which balance it is; equal names, equal draws.
        shares: of each class, in the order of the class numbers.
    """

    def __init__(self, name: str, shares: Sequence[ClassShare], labels: NDArray[np.int32], blocks: Ids) -> None:
        """Take int32 [rows] labels of a split and int64 [num_blocks, 2], first id and rows of each of its blocks."""
        self.name = name
        self.shares = tuple(shares)
        self._labels = labels
        self._first = int(blocks[0, 0])
        self._draws = np.array([share.draws for share in shares], np.int64)
        self._rows = np.array([max(share.rows, 1) for share in shares], np.int64)
        # Which classes lie in which block, and how often: few numbers where a block's rows are of few classes.
        classes, found = len(shares), []
        step = max(1, COUNTED_AT_ONCE // classes)
        for first in range(0, len(blocks), step):
            some = blocks[first : first + step]
            of_row = np.repeat(np.arange(len(some)) * classes, some[:, 1])
            start = int(some[0, 0]) - self._first
            counts = np.bincount(of_row + labels[start : start + len(of_row)], minlength=len(some) * classes)
            there = np.flatnonzero(counts)
            found.append((first + there // classes, there % classes, counts[there]))
        self._entry_block, self._entry_class, self._entry_rows = map(np.concatenate, zip(*found, strict=True))

    def epoch(self, window_of_block: Ids, words: NDArray[np.uint64]) -> "EpochDraws":
        """Return the draws of an epoch whose windows hold the blocks so, given a random word for each class."""
        windows, classes = int(window_of_block.max()) + 1, len(self.shares)
        in_window = np.zeros((windows, classes), np.int64)
        cell = window_of_block[self._entry_block] * classes + self._entry_class
        np.add.at(in_window.reshape(-1), cell, self._entry_rows)
        before = np.cumsum(in_window, axis=0) - in_window
        return EpochDraws(self, before, (words % self._rows.astype(np.uint64)).astype(np.int64))

    def drawn(self, rank: Ids, of_class: Ids | slice, offsets: Ids) -> Ids:
        """Return how many draws of a class go to its first ``rank`` rows, in the order in which an epoch reads them.

        Systematic sampling (Madow 1949): rows at equal steps, from an offset that the epoch draws for the class.
        """
        return (rank * self._draws[of_class] + offsets[of_class]) // self._rows[of_class]

    def classes_of(self, ids: Ids) -> Ids:
        """Return the class of any rows of the split, int64 [n]."""
        return self._labels[ids - self._first].astype(np.int64)


class EpochDraws:
    """The draws of one epoch.

    Attributes:
        starts: int64 [num_windows]: the offset of each window's first draw. Windows may be empty.
    """

    def __init__(self, quotas: Quotas, before: Ids, offsets: Ids) -> None:
        """Take int64 [num_windows, num_classes] rows of each class before each window, and an offset for each class."""
        self._quotas = quotas
        self._before = before
        self._offsets = offsets
        self.starts: Ids = quotas.drawn(before, slice(None), offsets).sum(axis=1)

    def window(self, window: int, ids: Ids) -> Ids:
        """Return the rows of a window, int64 [num_rows] in the order of its blocks, as often as each is drawn."""
        classes = self._quotas.classes_of(ids)
        by_class = np.argsort(classes, kind="stable")
        counts = np.bincount(classes, minlength=self._before.shape[1])
        rank = np.empty(len(ids), np.int64)
        rank[by_class] = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)
        rank += self._before[window, classes]
        drawn = self._quotas.drawn
        return np.repeat(ids, drawn(rank + 1, classes, self._offsets) - drawn(rank, classes, self._offsets))


def quotas_of(dataset: "DataSet", split: str, balance: Balance) -> Quotas | None:
    """Return the draws of an epoch of ``split`` under a balance; None for ``none``.

    Raises:
        ConfigError: a class that the data set does not know, or shares that do not add up.
        DataError: rows without a label, a share for a class without rows, or more than 2^31 rows.
    """
    if balance == "none":
        return None
    labels, rows = dataset.labels(split), dataset.num_rows(split)
    without = rows if labels is None else int((labels < 0).sum())
    if labels is None or without:
        raise DataError(
            f"{without:,} of the {rows:,} images of split '{split}' in {dataset.location} have no label, and"
            " data.balance needs one for each; import them with labels, or set data.balance=none"
        )
    if rows >= MAX_ROWS:
        raise DataError(f"split '{split}' has {rows:,} rows; data.balance takes fewer than {MAX_ROWS:,}: use a part")
    names = dataset.class_names or []
    counts = [int(count) for count in np.bincount(labels, minlength=len(names))]
    draws = apportion(rows, class_weights(balance, names, counts))
    shares = [ClassShare(*values) for values in zip(names, counts, draws, strict=True)]
    return Quotas(_name(balance, draws), shares, labels, dataset.blocks(split))


def class_weights(balance: Balance, names: Sequence[str], rows: Sequence[int]) -> list[Fraction]:
    """Return a weight for each class: its share of the draws is its part of the sum.

    ``uniform``: the same for each class that has rows. ``sqrt``: the square root of its rows, between ``none`` and
    ``uniform``. A mapping from names (or numbers) to shares: where it names every class that has rows, only their
    ratios count; else they sum to 1 at most, and what is left goes to the other classes as their rows do. So
    ``{cat: 0.2}`` is a fifth of cats among all else, ``{cat: 0}`` all but cats, ``{cat: 0.5, dog: 0.5}`` just these.

    Raises:
        ConfigError: a class that is not there or is named twice, or shares that sum to more than 1, or all to 0.
        DataError: a share for a class without rows.
    """
    if balance == "uniform":
        return [Fraction(count > 0) for count in rows]
    if balance == "sqrt":
        return [Fraction(math.isqrt(count << 64)) for count in rows]
    assert isinstance(balance, dict)
    shares: dict[int, Fraction] = {}
    for name, share in balance.items():
        number = _class_number(name, names)
        if number in shares:
            raise ConfigError(f"data.balance names class '{names[number]}' twice, by name and by number; name it once")
        if share and not rows[number]:
            raise DataError(
                f"data.balance.{name}={share:g}: the split has no image of it; set it to 0, or leave it out"
            )
        shares[number] = Fraction(repr(float(share)))  # as it was written: 0.1 is a tenth
    left_out = {number: count for number, count in enumerate(rows) if count and number not in shares}
    total = sum(shares.values())
    if left_out and total > 1:
        raise ConfigError(
            f"data.balance: the shares sum to {float(total):g} and leave out {len(left_out)} classes"
            f" ({', '.join(names[number] for number in list(left_out)[:3])}{', …' if len(left_out) > 3 else ''});"
            " name every class, or use shares that sum to 1 at most"
        )
    if not left_out and not total:
        raise ConfigError("data.balance: every class has share 0; give some class more")
    rest = Fraction(1 - total, sum(left_out.values())) if left_out else Fraction(0)
    return [shares.get(number, rest * left_out.get(number, 0)) for number in range(len(names))]


def apportion(total: int, weights: Sequence[Fraction]) -> list[int]:
    """Share ``total`` out by weight, by the largest remainders; each gets its exact part less or more than one."""
    whole = sum(weights)
    assert whole > 0
    exact = [total * weight / whole for weight in weights]
    found = [math.floor(part) for part in exact]
    by_remainder = sorted(range(len(exact)), key=lambda number: found[number] - exact[number])  # stable: ties in order
    for number in by_remainder[: total - sum(found)]:
        found[number] += 1
    return found


def valid_balance(value: object) -> object:
    """Return what ``data.balance`` was set to, classes as text.

    Raises:
        ValueError: it is neither a kind nor a mapping of classes to shares.
    """
    if isinstance(value, str):
        if value not in KINDS:
            raise ValueError(f"'{value}'{did_you_mean(value, KINDS)}; use {', '.join(KINDS)}, or {{CLASS: SHARE}}")
        return value
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{value!r} is no balance; use {', '.join(KINDS)}, or {{CLASS: SHARE}}")
    shares: dict[str, float] = {}
    for name, share in value.items():
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise ValueError(f"{name!r} is no class name; quote it")
        if str(name) in shares:
            raise ValueError(f"class {name} has two shares; name it once")
        shares[str(name)] = _share(name, share)
    return shares


def _share(name: object, value: object) -> float:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError):
            share = float(value)  # YAML takes 1e-3 for text
            if 0 <= share < math.inf:
                return share
    raise ValueError(f"class {name} has share {value!r}; use a number of at least 0")


def _class_number(name: str, names: Sequence[str]) -> int:
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    known = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    raise ConfigError(f"data.balance names an unknown class '{name}'{did_you_mean(name, names)}; known: {known}")


def _name(balance: Balance, draws: Sequence[int]) -> str:
    if isinstance(balance, str):
        return balance
    return "shares/" + hashlib.blake2b(" ".join(map(str, draws)).encode(), digest_size=8).hexdigest()
