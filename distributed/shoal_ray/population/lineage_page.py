"""The family tree of a population search: whose weights each member had and when, as one HTML file without network.

Everything that is drawn is computed from the rows of ``lineage.jsonl`` and ``population.jsonl``; ``lineage.html.in``
holds the page, its styles and the script that draws. The page's Content-Security-Policy forbids it to load anything.
"""

import base64
import html
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from itertools import count, pairwise
from types import MappingProxyType
from typing import Any, Literal

Row = Mapping[str, Any]
Mode = Literal["min", "max"]

STATE = re.compile(r"(\d+)@(\d+)")
"""A state's name, ``member@samples``."""

NO_PICTURES: Mapping[tuple[int, int], bytes] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of one member's clock between two changes of its state.

    Attributes:
        member: whose clock.
        start_samples, end_samples: the stretch; equal where nothing was trained between two changes.
        values: of the searched keys, which hold for the whole stretch.
        fitness: the last one measured in the stretch; None if there is none or it is not finite.
        parent: index of the segment whose weights it began with; None for a birth.
        source_seq: number of the order that began it; None for a birth.
        parent_samples: the parent's clock at the weights that were taken. Where the members do not wait for each other,
            it differs from ``start_samples``.
    """

    member: int
    start_samples: int
    end_samples: int
    values: Mapping[str, Any]
    fitness: float | None
    parent: int | None
    source_seq: int | None
    parent_samples: int | None = None


@dataclass(eq=False)
class _Draft:
    """A segment of which the end is not known yet; ``order`` is greater than its parent's."""

    member: int
    start: int
    values: dict[str, Any]
    seq: int | None
    order: int
    parent: "_Draft | None" = None
    parent_samples: int | None = None


@dataclass
class _Pedigree:
    """Drafts by member, in the order of their clocks, as the events tell them one by one."""

    lives: dict[int, list[_Draft]] = field(default_factory=dict)
    orders: Iterator[int] = field(default_factory=count)

    def life(self, member: int, values: Row | None = None, start: int = 0) -> list[_Draft]:
        """Return a member's drafts; one that is not known yet is born with ``values``."""
        if member not in self.lives:
            self.lives[member] = [_Draft(member, start, dict(values or {}), None, next(self.orders))]
        return self.lives[member]

    def change(self, event: Row) -> _Draft:
        """Return the draft that an order began; an order that is told again, after a resume, does not begin another."""
        member, seq = event["member"], event.get("seq")
        life = self.life(member, event.get("old"))
        last, told = life[-1], self.find(member, seq)
        start = max(event["samples"], last.start)  # a clock never goes back, whatever a damaged file says
        if told is not None and told.start in (start, event["samples"]):
            return told
        life.append(_Draft(member, start, dict(last.values), seq, next(self.orders), last, start))
        return life[-1]

    def find(self, member: int, seq: int | None) -> _Draft | None:
        """Return the newest draft that the order ``seq`` began."""
        drafts = reversed(self.lives.get(member, []))
        return next((draft for draft in drafts if seq is not None and draft.seq == seq), None)

    def descend(self, draft: _Draft, donor: int, samples: int) -> None:
        """Say that a draft began with the weights that ``donor`` had when its clock said ``samples``.

        At a donor's own change these are the weights that it left, because it published them before.
        """
        life = self.life(donor)
        known = life[: life.index(draft)] if donor == draft.member else life
        parent = next((other for other in reversed(known) if other.start < samples), known[0])
        if parent.order > draft.order:  # a repeated load found a newer state than the one that was decided on
            if any(other.parent is draft for life in self.lives.values() for other in life):
                return
            if self.lives[draft.member][-1] is not draft:
                return
            draft.order = next(self.orders)
        draft.parent, draft.parent_samples = parent, samples

    def keep(self, draft: _Draft) -> None:
        """Say that a draft began with its member's own weights: the donor's were gone."""
        life = self.lives[draft.member]
        draft.parent, draft.parent_samples = life[life.index(draft) - 1], draft.start


def segments(events: Sequence[Row], rows: Sequence[Row]) -> list[Segment]:
    """Cut every member's clock where its state changed, and find whose weights each stretch began with.

    Args:
        events: rows of ``lineage.jsonl`` in the file's order. Without a ``loaded`` row an exploit is taken at its word.
        rows: rows of ``population.jsonl``; of two at one clock value the later one holds.

    Returns:
        Segments, each after its parent and each member's in the order of its clock. A member's segments leave no gap.
    """
    histories = _histories(rows)
    tree = _Pedigree()
    ends = {member: history[-1]["samples"] for member, history in histories.items()}
    for event in events:
        member, kind = event["member"], event["event"]
        if kind == "birth":
            tree.life(member, event.get("new"), event["samples"])
        elif kind == "exploit":
            draft = tree.change(event)
            draft.values |= event.get("new") or {}
            donor, samples = _state(event) or (event["donor"], event["donor_samples"])
            tree.descend(draft, donor, samples)
        elif kind == "mutation":
            tree.change(event).values |= event.get("new") or {}
        elif kind == "loaded":
            loaded, state = tree.find(member, event.get("seq")), _state(event)
            if loaded is not None and event.get("source") == "own":
                tree.keep(loaded)
            elif loaded is not None and state is not None:
                tree.descend(loaded, *state)
        elif kind == "death":
            tree.life(member)
            ends[member] = max(event["samples"], ends.get(member, 0))
    for member, history in histories.items():
        root = tree.life(member)[0]
        root.values = root.values or dict(history[0].get("values") or {})
    drafts = sorted((draft for life in tree.lives.values() for draft in life), key=lambda draft: draft.order)
    for draft in drafts:  # a state that was published shows how far its member had come
        if draft.parent is not None and draft.parent_samples is not None:
            donor = draft.parent.member
            ends[donor] = max(draft.parent_samples, ends.get(donor, 0))
    index = {id(draft): place for place, draft in enumerate(drafts)}
    end = {id(one): two.start for life in tree.lives.values() for one, two in pairwise(life)}
    found = []
    for draft in drafts:
        stop = end.get(id(draft), max(draft.start, ends.get(draft.member, 0)))
        parent = None if draft.parent is None else index[id(draft.parent)]
        history = _within(histories.get(draft.member, []), draft.start, stop, first=draft.parent is None)
        segment = Segment(
            member=draft.member,
            start_samples=draft.start,
            end_samples=stop,
            values=draft.values,
            fitness=_finite(history[-1].get("fitness")) if history else None,
            parent=parent,
            source_seq=draft.seq,
            parent_samples=draft.parent_samples,
        )
        found.append(segment)
    return found


def winning_line(segments: Sequence[Segment], mode: Mode) -> list[int]:
    """Follow the weights of the best member back to their birth.

    Args:
        segments: as ``segments`` returns them.
        mode: whether the best fitness is the smallest or the largest.

    Returns:
        Indexes from the root to the best of the members' last segments; where none of these has a fitness, to the best
        of all. Empty if no segment has one.
    """
    last = {segment.member: place for place, segment in enumerate(segments)}.values()
    sign = 1 if mode == "min" else -1
    for places in (last, range(len(segments))):
        scored = [(sign * fitness, place) for place in places if (fitness := segments[place].fitness) is not None]
        if scored:
            line: list[int] = []
            step: int | None = min(scored)[1]
            while step is not None:
                line.insert(0, step)
                step = segments[step].parent
            return line
    return []


def lineage_page(
    title: str,
    events: Sequence[Row],
    rows: Sequence[Row],
    *,
    mode: Mode,
    metric: str,
    pictures: Mapping[tuple[int, int], bytes] = NO_PICTURES,
) -> str:
    """Write the family tree of a search as one HTML document that loads nothing.

    Args:
        title: the search's name; plain text.
        events: rows of ``lineage.jsonl``.
        rows: rows of ``population.jsonl``.
        mode: whether a good fitness is small or large.
        metric: the fitness's name; plain text.
        pictures: PNG files by (member, samples), shown with the segment that holds this clock value.
    """
    tree = segments(events, rows)
    line = winning_line(tree, mode)
    taken = [tree[place].parent_samples for place in line[1:]]
    facts = {
        "title": title,
        "metric": metric,
        "mode": mode,
        "segments": _details(tree, events, rows, pictures),
        "line": [
            {"segment": place, "from": tree[place].start_samples, "to": to}
            for place, to in zip(line, [*taken, tree[line[-1]].end_samples] if line else [], strict=True)
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
    histories = _histories(rows)
    shown = _histories([{"member": key[0], "samples": key[1], "png": png} for key, png in pictures.items()])
    told = {(event["event"], event["member"], event.get("seq"), event["samples"]): event for event in events}
    found = []
    for segment in tree:
        began = (segment.member, segment.source_seq, segment.start_samples)
        stretch = (segment.start_samples, segment.end_samples, segment.parent is None)
        history = _within(histories.get(segment.member, []), *stretch)
        found.append(
            asdict(segment)
            | {kind: told.get((kind, *began)) for kind in ("exploit", "mutation", "loaded")}
            | {
                "history": [{key: row.get(key) for key in ("generation", "samples", "fitness")} for row in history],
                "metrics": dict(history[-1].get("metrics") or {}) if history else {},
                "pictures": [
                    {"samples": row["samples"], "png": base64.b64encode(row["png"]).decode()}
                    for row in _within(shown.get(segment.member, []), *stretch)
                ],
            }
        )
    return found


def _histories(rows: Iterable[Row]) -> dict[int, list[Row]]:
    """Sort rows by member and clock; a generation that was trained again, after a resume, replaces the lost one."""
    newest = {(row["member"], row["samples"]): row for row in rows}
    histories: dict[int, list[Row]] = {}
    for (member, _), row in sorted(newest.items()):
        histories.setdefault(member, []).append(row)
    return histories


def _within(history: Iterable[Row], start: int, end: int, first: bool) -> list[Row]:
    """Return the rows of a stretch; what was measured at a change belongs to the stretch before it, if there is one."""
    return [row for row in history if start < row["samples"] <= end or (first and row["samples"] == start)]


def _state(event: Row) -> tuple[int, int] | None:
    found = STATE.match(event.get("state") or "")
    return (int(found[1]), int(found[2])) if found else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _embed(facts: Any) -> str:
    """Return JSON that may stand in a script element: strict, in ASCII, and without a ``<`` that could end it."""

    def strict(value: Any) -> Any:
        if isinstance(value, float):
            return _finite(value)
        if isinstance(value, Mapping):
            return {str(key): strict(one) for key, one in value.items()}
        return [strict(one) for one in value] if isinstance(value, (list, tuple)) else value

    return json.dumps(strict(facts), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
