"""Read some rows of an imported source once more, to mend a damaged part of the data set."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shoal.data.importers.routing import Place, Router
from shoal.data.importers.source import Rows, Source
from shoal.data.importers.splitting import Shares, pick


def reread(
    source: Source,
    split: str,
    start: int,
    stop: int,
    *,
    places: Sequence[Mapping[str, Any]] = (),
    limit: int | None = None,
    shares: Shares | None = None,
) -> Iterator[Rows]:
    """Yield rows ``start .. stop - 1`` of a split of the data set, as they were imported.

    ``limit`` and ``shares`` are those of the import, ``places`` stand in its record: reading begins at the last one
    before ``start``, else with the first unit. Yields fewer rows where the source has become shorter; raises what
    reading it raises.
    """
    before = [place for place in places if place["given"].get(split, 0) <= start]
    values = dict(before[-1]) if before else {"given": {}}
    at = int(values.pop("given").get(split, 0))
    router = Router(source.splits, limit=limit, shares=shares, place=Place(**values))
    for number in range(router.place.unit, len(source.units)):
        for rows in source.read(source.units[number]):
            for part in router.route(number, rows):
                if part.split == split:
                    asked = pick(part, slice(max(0, start - at), max(0, stop - at)))
                    at += len(part)
                    if len(asked):
                        yield asked
            if at >= stop:
                return
