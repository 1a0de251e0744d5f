"""Whose weights each member had and when: each clock cut where the state changed, and where each piece comes from."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any, Literal

from shoal_ray.population.journal import Row

Mode = Literal["min", "max"]

STATE = re.compile(r"(\d+)@(\d+)")
"""A state's name, ``member@samples``."""


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
    by_member = histories(rows)
    tree = _Pedigree()
    ends = {member: history[-1]["samples"] for member, history in by_member.items()}
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
    for member, history in by_member.items():
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
        history = within(by_member.get(draft.member, []), draft.start, stop, first=draft.parent is None)
        segment = Segment(
            member=draft.member,
            start_samples=draft.start,
            end_samples=stop,
            values=draft.values,
            fitness=finite(history[-1].get("fitness")) if history else None,
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
            return _line(segments, min(scored)[1])
    return []


def line_to(segments: Sequence[Segment], member: int, samples: int) -> list[int]:
    """Follow the weights that a member had at a clock value back to their birth.

    Returns:
        Indexes from the root to the segment at whose end, or on the way, these weights were; empty if there is none.
    """
    there = (
        place
        for place, segment in enumerate(segments)
        if segment.member == member and segment.start_samples < samples <= segment.end_samples
    )
    return _line(segments, next(there, None))


def _line(segments: Sequence[Segment], step: int | None) -> list[int]:
    line: list[int] = []
    while step is not None:
        line.insert(0, step)
        step = segments[step].parent
    return line


def histories(rows: Iterable[Row]) -> dict[int, list[Row]]:
    """Sort rows by member and clock; a generation that was trained again, after a resume, replaces the lost one."""
    newest = {(row["member"], row["samples"]): row for row in rows}
    found: dict[int, list[Row]] = {}
    for (member, _), row in sorted(newest.items()):
        found.setdefault(member, []).append(row)
    return found


def within(history: Iterable[Row], start: int, end: int, first: bool) -> list[Row]:
    """Return the rows of a stretch; what was measured at a change belongs to the stretch before it, if there is one."""
    return [row for row in history if start < row["samples"] <= end or (first and row["samples"] == start)]


def _state(event: Row) -> tuple[int, int] | None:
    found = STATE.match(event.get("state") or "")
    return (int(found[1]), int(found[2])) if found else None


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
