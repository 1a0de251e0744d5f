"""The switchboard: members report to it and take their orders from it. It writes the journals before anyone acts.

One asynchronous actor a search. It holds no weights, only the references of the last published states, and nothing that
it could not read again from the journals: Ray restarts it when it dies, and those who wait ask again.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shoal_ray.population.directory import SearchDirectory
from shoal_ray.population.exploit import Candidate, Choice, Parts, choose_donor
from shoal_ray.population.journal import Journal, Row
from shoal_ray.population.orders import Leave, Order, Train
from shoal_ray.population.standing import Standing, standings

DIVERGED = "all members have diverged"
TOLD_TURNS = 4
"""Answers kept, so that all ranks of a member hear the same."""


class Line:
    """The wire to one member: which incarnation of it may speak, and what it was told."""

    def __init__(self, incarnation: str) -> None:
        self.incarnation = incarnation
        self.target: Train | None = None
        self.told: dict[tuple[str, int], Order] = {}
        self.published: tuple[int, list[Any]] | None = None
        self.leaving = False


class Switchboard:
    """See the module. Every method can be called again after a failure and does no harm.

    Args:
        path: the search's directory.
        slots: members that may train at once; the others wait for their turn.
    """

    def __init__(self, path: str, slots: int) -> None:
        self._directory = SearchDirectory.open(Path(path))
        self._search = self._directory.search
        self._lineage = Journal(self._directory.lineage)
        self._population = Journal(self._directory.population)
        self._members = standings(self._lineage.rows, self._population.rows)
        self._lines = {number: Line(standing.incarnation) for number, standing in self._members.items()}
        self._changed = asyncio.Condition()
        self._slots = slots
        self._training: set[int] = set()
        self._waiting: list[int] = []
        self._stopping: str | None = None
        self._began = time.monotonic()
        self.refusal: str | None = None

    # --- the life of a member: its Trainable calls these --------------------------------------------------------------

    async def register(self, member: int, incarnation: str) -> tuple[int, str | None]:
        """Let a new incarnation speak for a member, and silence all older ones.

        Returns:
            its generations so far, and the placement group that an older one has left, if any.
        """
        line, standing = self._line(member), self._members[member]
        if line.incarnation != incarnation:
            self._note({"event": "start", "member": member, "samples": _samples(standing), "incarnation": incarnation})
            line.incarnation, line.leaving, line.told = incarnation, False, {}
            self._training.discard(member)
            standing.incarnation, standing.dead = incarnation, None
        await self._tell()
        return standing.generation, standing.group

    async def lives_in(self, member: int, incarnation: str, group: str) -> None:
        """Note the placement group of a member's workers."""
        standing = self._members[member]
        if self._line(member).incarnation == incarnation:
            self._note({"event": "workers", "member": member, "samples": _samples(standing), "group": group})
            standing.group = group

    async def turn(self, member: int, incarnation: str) -> bool:
        """Wait until a member may train; False: it has nothing more to do here."""
        line = self._line(member)
        if member not in self._waiting and member not in self._training:
            self._waiting.append(member)
        await self._until(
            lambda: (
                line.incarnation != incarnation
                or bool(self._stopping)
                or member in self._training
                or (len(self._training) < self._slots and self._waiting[0] == member)
            )
        )
        if member in self._waiting:
            self._waiting.remove(member)
        if line.incarnation != incarnation or self._stopping:
            return False
        self._training.add(member)
        await self._tell()
        return True

    async def yields(self, member: int) -> bool:
        """Tell whether a member should make room for one that waits."""
        return bool(self._waiting) and member in self._training

    async def made_room(self, member: int, incarnation: str) -> None:
        """Note that a member's workers have left."""
        line = self._line(member)
        if line.incarnation == incarnation:
            line.leaving = False
            self._training.discard(member)
            await self._tell()

    async def train(self, member: int, incarnation: str, generation: int) -> dict[str, Any] | None:
        """Have a member trained to the end of a generation and return that row, with ``over`` if the search is.

        None where the search was stopped before, or another incarnation has taken over.
        """
        line, standing = self._line(member), self._members[member]
        if line.incarnation == incarnation:
            line.target = Train(generation * self._search.generation_samples, generation)
            await self._tell()
        await self._until(
            lambda: (
                line.incarnation != incarnation
                or standing.generation >= generation
                or bool(self._stopping and not standing.live.get("busy"))
            )
        )
        if line.incarnation != incarnation or standing.generation < generation:
            return None
        row = next(row for row in reversed(standing.rows) if row["generation"] >= generation)
        standing.over = self._over(standing)
        return {**row, "score": self.score(row), "over": standing.over}

    async def leave(self, member: int, incarnation: str, *, final: bool = False) -> None:
        """Have a member's workers save what there is and end; finally so, if the search has no more use for it."""
        line, standing = self._line(member), self._members[member]
        if line.incarnation != incarnation:
            return
        line.leaving = True
        if final and not standing.dead and (standing.over or not self._stopping):
            standing.dead = standing.over or "stopped early"
            self._note({"event": "death", "member": member, "samples": _samples(standing), "reason": standing.dead})
        await self._tell()

    async def refuse(self, message: str) -> None:
        """Stop the search for a mistake that the user can mend."""
        self.refusal = self.refusal or message
        await self.stop(message)

    # --- what the workers call ----------------------------------------------------------------------------------------

    async def next(self, member: int, incarnation: str, group: str, turn: int, *, samples: int, seq: int) -> Order:
        """Wait for a member's next order; every rank of a group of workers asks for its n-th and hears the same.

        Args:
            member: its number.
            incarnation: an older one is told to leave.
            group: names the workers that started together.
            turn: how often they have asked before.
            samples: their clock.
            seq: the last exploit that their weights know of.
        """
        line, key = self._line(member), (group, turn)
        if line.incarnation == incarnation:
            self._training.add(member)  # this may be a new switchboard, that gave no turns yet
        await self._until(
            lambda: (
                line.incarnation != incarnation
                or key in line.told
                or self._pending(member, samples=samples, seq=seq) is not None
            )
        )
        if line.incarnation != incarnation:
            return Leave()
        if key not in line.told:
            order = self._pending(member, samples=samples, seq=seq)
            assert order is not None
            line.told = {old: told for old, told in line.told.items() if old[1] > turn - TOLD_TURNS} | {key: order}
        return line.told[key]

    async def trained(
        self, member: int, incarnation: str, row: Mapping[str, Any], parts: Parts | None, state: list[Any]
    ) -> int | None:
        """Note what a generation came to; return the number of the row if it is the best so far.

        Args:
            member: its number.
            incarnation: an older one is not heard.
            row: member, generation, samples, metrics, values, samples_per_sec, state, and exploit_sec: from the
                decision that it takes another's weights to its first step with them, if it did.
            parts: what the metric is the mean of.
            state: the reference of the state, in a list, so that Ray does not fetch it.
        """
        line, standing = self._line(member), self._members[member]
        if line.incarnation != incarnation:
            return None
        if state:
            line.published = row["samples"], state
        standing.parts = parts
        standing.live = {**standing.live, "busy": False, "state": "waiting", "samples": row["samples"]}
        if standing.generation < row["generation"]:  # else, after a death, the same steps once more
            known = {"fitness": self._fitness(row), "has_parts": parts is not None}
            whole = {**row, **known, "time": time.time()}
            self._population.append(whole)
            standing.rows.append(whole)
        await self._tell()
        # Told again after a death too: that may have been before it was kept.
        rows = self._population.rows
        scored = [(score, -index) for index, score in enumerate(map(self.score, rows)) if score is not None]
        if not scored:
            return None
        best = -max(scored)[1]
        this = (member, row["generation"]) == (rows[best]["member"], rows[best]["generation"])
        return best + 1 if this else None

    async def loaded(self, member: int, incarnation: str, facts: Mapping[str, Any]) -> None:
        """Note which state a member really took: seq, samples, state, source, seconds."""
        if self._line(member).incarnation == incarnation:
            self._note({"event": "loaded", "member": member, **facts})
            self._members[member].learn(facts)

    async def fetch(self, donor: int) -> tuple[int, list[Any]] | None:
        """Return the sample and the reference of the state that a member published last."""
        return self._line(donor).published

    async def progress(self, member: int, incarnation: str, facts: Mapping[str, Any]) -> None:
        """Take note of how far a member is: samples, samples_per_sec, state, busy."""
        if self._line(member).incarnation == incarnation:
            self._members[member].live.update(facts)
            if not facts.get("busy", True):
                await self._tell()

    async def is_set(self) -> bool:
        """Tell whether the search was asked to stop."""
        return self._stopping is not None

    # --- what the scheduler calls -------------------------------------------------------------------------------------

    async def choose(self, member: int, donors: Sequence[int]) -> Choice:
        """Choose whose weights a member takes; of nobody, if it has done so at this clock already."""
        taker, search = self._members[member], self._search
        samples = _samples(taker)
        if any(order.samples == samples for order in taker.orders):
            return Choice(None, why="it has taken weights at this clock already")
        living = {number: standing.root for number, standing in self._members.items() if not standing.dead}
        return choose_donor(
            self._candidate(member),
            [self._candidate(donor) for donor in donors],
            living,
            min_gap=search.exploit.min_gap,
            max_share=search.exploit.max_share,
            progress=samples / search.samples,
            has_parts=any(row.get("has_parts") for row in self._population.rows),
            rng=random.Random(f"{search.seed}/donor/{member}/{samples}"),
        )

    async def exploit(
        self, member: int, donor: int, values: Mapping[str, Any], how: Mapping[str, str], gap: float | None
    ) -> int:
        """Write down that a member takes a donor's weights and goes on with other values; return the order's number."""
        taker, giver = self._members[member], self._members[donor]
        assert taker.row is not None
        assert giver.row is not None
        for order in taker.orders:
            if order.samples == taker.row["samples"]:  # asked again after a death that came before the answer
                return order.seq
        seq = 1 + max((row["seq"] for row in self._lineage.rows if "seq" in row), default=0)
        row = {
            "event": "exploit",
            "seq": seq,
            "member": member,
            "samples": taker.row["samples"],
            "donor": donor,
            "donor_samples": giver.row["samples"],
            "state": f"{donor}@{giver.row['samples']}",
            "old": dict(taker.values),
            "new": dict(values),
            "before": taker.row["fitness"],
            "after": giver.row["fitness"],
            "gap": gap if gap is None or abs(gap) < 1e9 else None,
        }
        changed = {key: value for key, value in values.items() if value != giver.values.get(key)}
        mutation = {
            "event": "mutation",
            "seq": seq,
            "member": member,
            "samples": taker.row["samples"],
            "old": {key: giver.values.get(key) for key in changed},
            "new": changed,
            "how": {key: how.get(key, "") for key in changed},
        }
        self._note(row, mutation)
        taker.take(self._lineage.rows[-2], giver.root)
        await self._tell()
        return seq

    # --- what the driver calls ----------------------------------------------------------------------------------------

    async def stop(self, reason: str) -> None:
        """Have every member save what there is, at the next sample."""
        self._stopping = self._stopping or reason
        await self._tell()

    async def look(self) -> tuple[dict[int, Standing], str | None, str | None]:
        """Return where everyone stands, without the parts; why the search stops, if it does; and what was refused."""
        standing = {number: replace(standing, parts=None) for number, standing in self._members.items()}
        return standing, self._stopping, self.refusal

    def close(self) -> None:
        """Close the journals."""
        self._lineage.close()
        self._population.close()

    # --- inside -------------------------------------------------------------------------------------------------------

    def score(self, row: Row) -> float | None:
        """Return a row's fitness as a number of which more is better; None where it has diverged."""
        fitness = row["fitness"]
        return None if fitness is None else fitness if self._search.fitness.mode == "max" else -fitness

    def _fitness(self, row: Mapping[str, Any]) -> float | None:
        if row["state"] != "trained":
            return None
        natural = self._search.fitness.natural(row["metrics"], self._search.priced(row["values"]))
        return natural if np.isfinite(natural) else None

    def _candidate(self, member: int) -> Candidate:
        standing = self._members[member]
        score = self.score(standing.row) if standing.row else None
        return Candidate(member, score, standing.root, standing.parts)

    def _over(self, standing: Standing) -> str | None:
        """Return why the search ends for a member here, if it does."""
        search, stop = self._search, self._search.stop
        if standing.generation >= search.generations:
            return "finished"
        newest = [other.row for other in self._members.values() if not other.dead]
        if all(row is not None and row["fitness"] is None for row in newest):
            self._stopping = DIVERGED
            return DIVERGED
        if stop.hours is not None and time.monotonic() - self._began > 3600 * stop.hours:
            return f"stop.hours={stop.hours:g} are over"
        if stop.plateau_generations is not None and self._plateau() >= stop.plateau_generations:
            return f"no better best for {stop.plateau_generations} generations"
        return None

    def _plateau(self) -> int:
        """Return how many generations ago the best was found, by the member that is least far."""
        scored = [(self.score(row), row["generation"]) for row in self._population.rows]
        best = max(((score, -generation) for score, generation in scored if score is not None), default=None)
        living = [standing.generation for standing in self._members.values() if not standing.dead]
        return 0 if best is None or not living else min(living) + best[1]

    def _pending(self, member: int, *, samples: int, seq: int) -> Order | None:
        """Return what a member at a clock, whose weights know the exploits up to ``seq``, is to do next."""
        line = self._line(member)
        for order in self._members[member].orders:
            # A checkpoint of a later clock knows of it: there is none between an exploit and the training after it.
            if order.seq > seq and order.samples >= samples:
                return order
        if line.leaving or self._stopping:
            return Leave()
        return line.target if line.target is not None and line.target.until > samples else None

    def _line(self, member: int) -> Line:
        return self._lines[member]

    def _note(self, *rows: Mapping[str, Any]) -> None:
        now = time.time()
        self._lineage.append(*({**row, "time": now} for row in rows))

    async def _until(self, ready: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(ready)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _samples(standing: Standing) -> int:
    return int(standing.row["samples"]) if standing.row else 0
