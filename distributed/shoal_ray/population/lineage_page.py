"""The family tree of a population search: whose weights each member had and when, as one HTML file without network.

Everything that is drawn is computed from the rows of ``lineage.jsonl`` and ``population.jsonl``; ``lineage.html.in``
holds the page, its styles and the script that draws. The page's Content-Security-Policy forbids it to load anything.
"""

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from shoal_ray.population.journal import Row
from shoal_ray.population.pedigree import Mode, Segment, finite, histories, line_to, segments, winning_line, within

NO_PICTURES: Mapping[tuple[int, int], bytes] = MappingProxyType({})


def lineage_page(
    title: str,
    events: Sequence[Row],
    rows: Sequence[Row],
    *,
    mode: Mode,
    metric: str,
    best: tuple[int, int] | None = None,
    pictures: Mapping[tuple[int, int], bytes] = NO_PICTURES,
) -> str:
    """Write the family tree of a search as one HTML document that loads nothing.

    Args:
        title: the search's name; plain text.
        events: rows of ``lineage.jsonl``.
        rows: rows of ``population.jsonl``.
        mode: whether a good fitness is small or large.
        metric: the fitness's name; plain text.
        best: member and clock of the best state, to which the winning line leads. None: the best of the last segments.
        pictures: PNG files by (member, samples), shown with the segment that holds this clock value.
    """
    tree = segments(events, rows)
    line = line_to(tree, *best) if best else winning_line(tree, mode)
    end = best[1] if best else tree[line[-1]].end_samples if line else 0
    taken = [tree[place].parent_samples for place in line[1:]]
    facts = {
        "title": title,
        "metric": metric,
        "mode": mode,
        "segments": _details(tree, events, rows, pictures),
        "line": [
            {"segment": place, "from": tree[place].start_samples, "to": to}
            for place, to in zip(line, [*taken, end] if line else [], strict=True)
        ],
        "deaths": list({event["member"]: event for event in events if event["event"] == "death"}.values()),
        "counts": {kind: sum(event["event"] == kind for event in events) for kind in ("exploit", "mutation", "death")},
    }
    parts = {"TITLE": html.escape(title), "DATA": _embed(facts)}
    template = files(__package__).joinpath("lineage.html.in").read_text(encoding="utf-8")
    return re.sub("@@(TITLE|DATA)@@", lambda found: parts[found[1]], template)


def _details(
    tree: Sequence[Segment], events: Sequence[Row], rows: Sequence[Row], pictures: Mapping[tuple[int, int], bytes]
) -> list[dict[str, Any]]:
    """Return what the page says of each segment: fields, the orders that began it, generations, pictures."""
    by_member = histories(rows)
    shown = histories([{"member": key[0], "samples": key[1], "png": png} for key, png in pictures.items()])
    told = {(event["event"], event["member"], event.get("seq"), event["samples"]): event for event in events}
    found = []
    for segment in tree:
        began = (segment.member, segment.source_seq, segment.start_samples)
        stretch = (segment.start_samples, segment.end_samples, segment.parent is None)
        history = within(by_member.get(segment.member, []), *stretch)
        found.append(
            asdict(segment)
            | {kind: told.get((kind, *began)) for kind in ("exploit", "mutation", "loaded")}
            | {
                "history": [{key: row.get(key) for key in ("generation", "samples", "fitness")} for row in history],
                "metrics": dict(history[-1].get("metrics") or {}) if history else {},
                "pictures": [
                    {"samples": row["samples"], "png": base64.b64encode(row["png"]).decode()}
                    for row in within(shown.get(segment.member, []), *stretch)
                ],
            }
        )
    return found


def _embed(facts: Any) -> str:
    """Return JSON that may stand in a script element: strict, in ASCII, and without a ``<`` that could end it."""

    def strict(value: Any) -> Any:
        if isinstance(value, float):
            return finite(value)
        if isinstance(value, Mapping):
            return {str(key): strict(one) for key, one in value.items()}
        return [strict(one) for one in value] if isinstance(value, (list, tuple)) else value

    return json.dumps(strict(facts), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
