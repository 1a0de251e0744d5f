"""Which rows of a source go into which split of the data set, and where to read on after a kill."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from shoal.data.importers.source import Rows
from shoal.data.importers.splitting import Shares, pick


@dataclass(frozen=True)
class Place:
    """Where to read on.

    Attributes:
        unit: to read again from its start.
        rows: of that unit that are there already, in the order of reading, as far as the limit lets them in.
        num_skipped: unreadable images before the unit.
        seen: rows of each of the source's splits before the unit: what counts for the limit.
    """

    unit: int = 0
    rows: int = 0
    num_skipped: int = 0
    seen: Mapping[str, int] = field(default_factory=dict)


class Router:
    """Cut the rows of a source to a limit, leave out what is there already, and divide the rest into splits.

    Units come in order, from that of ``place`` on; it is always the same rows that go the same way.
    """

    def __init__(
        self,
        splits: Sequence[str],
        *,
        limit: int | None = None,
        shares: Shares | None = None,
        place: Place | None = None,
    ) -> None:
        self._from = place or Place()
        self.splits = list(splits) if shares is None else shares.splits_of(splits)
        self.num_skipped = self._from.num_skipped
        self._source_splits = list(splits)
        self._limit = limit
        self._shares = shares
        self._seen = Counter(self._from.seen)
        self._unit = self._from

    @property
    def place(self) -> Place:
        """Return where to read on when all rows so far are there."""
        return self._unit

    def route(self, unit: int, rows: Rows) -> list[Rows]:
        """Return what ``rows`` of a unit come to: rows of the data set's splits."""
        if unit != self._unit.unit or self._unit is self._from:
            self._unit = Place(unit, 0, self.num_skipped, dict(self._seen))
        if self.is_full(rows.split):
            return []
        self.num_skipped += rows.num_skipped
        if self._limit is not None:
            rows = pick(rows, slice(self._limit - self._seen[rows.split]))
        self._seen[rows.split] += len(rows)
        known = self._from.rows - self._unit.rows if unit == self._from.unit else 0
        self._unit = replace(self._unit, rows=self._unit.rows + len(rows))
        if known > 0:
            rows = pick(rows, slice(known, None))
        if len(rows) == 0:
            return []
        return [rows] if self._shares is None else self._shares.divide(rows)

    def is_full(self, split: str | None = None) -> bool:
        """Return whether no more rows of one of the source's splits are wanted, or of any."""
        splits = self._source_splits if split is None else [split]
        return self._limit is not None and all(self._seen[name] >= self._limit for name in splits)
