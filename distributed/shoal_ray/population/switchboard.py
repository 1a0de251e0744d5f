"""The switchboard: members report to it and take their orders from it. It writes the journals before anyone acts.

One asynchronous actor a search. It holds no weights, only the references of the last published states, and nothing that
it could not read again from the journals: Ray restarts it when it dies, and those who wait ask again.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shoal_ray.population.directory import SearchDirectory
from shoal_ray.population.ending import DIVERGED, why_over
from shoal_ray.population.exploit import Candidate, Choice, Parts, choose_donor
from shoal_ray.population.journal import Journal, Row
from shoal_ray.population.orders import Leave, Order, Train
from shoal_ray.population.parts import read_parts
from shoal_ray.population.standing import Standing, exploit_rows, standings
from shoal_ray.population.turns import Turns

GIVEN_UP = "given up"
DONOR_SEC = 60
"""How long a taker waits for a donor that is about to train to the state once more that it lost."""
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
        began: when the driver did, in seconds since 1970: the hours of the search count from there.
    """

    def __init__(self, path: str, slots: int, began: float) -> None:
        self._directory = SearchDirectory.open(Path(path))
        self._search = self._directory.search
        self._lineage = Journal(self._directory.lineage)
        self._population = Journal(self._directory.population)
        self._members = standings(self._lineage.rows, self._population.rows)
        self._lines = {number: Line(standing.incarnation) for number, standing in self._members.items()}
        self._changed = asyncio.Condition()
        self._turns = Turns(slots)
        self._stopping: str | None = None
        self._ending: str | None = None
        self._parts: dict[int, tuple[int, Parts | None]] = {}
        self._began = began
        self.refusal: str | None = None

    # --- the life of a member: its Trainable calls these --------------------------------------------------------------

    async def register(self, member: int, incarnation: str) -> tuple[int, list[str]]:
        """Let a new incarnation speak for a member, and silence all older ones.

        Returns:
            its generations so far, and the placement groups that older ones may have left.
        """
        line, standing = self._line(member), self._members[member]
        if line.incarnation != incarnation:
            self._note({"event": "start", "member": member, "samples": _samples(standing), "incarnation": incarnation})
            line.incarnation, line.leaving, line.told = incarnation, False, {}
            self._turns.give_back(member)
            self._turns.step_aside(member)
            standing.incarnation, standing.dead = incarnation, None
        await self._tell()
        return standing.generation, list(standing.groups)

    async def lives_in(self, member: int, incarnation: str, group: str) -> None:
        """Note the placement group that is about to be made for a member's workers."""
        standing = self._members[member]
        if self._line(member).incarnation == incarnation:
            self._note({"event": "workers", "member": member, "samples": _samples(standing), "group": group})
            standing.groups.append(group)

    async def turn(self, member: int, incarnation: str) -> bool:
        """Wait until a member may train; False: it has nothing more to do here."""
        line = self._line(member)
        if self._turns.ask(member):
            await self._tell()  # whoever holds a place and has nothing to do gives it up

        def unwanted() -> bool:
            dead = self._members[member].dead is not None
            return line.incarnation != incarnation or line.leaving or dead or bool(self._stopping)

        await self._until(lambda: unwanted() or self._turns.is_next(member))
        if line.incarnation == incarnation:  # else the place is that of a newer one
            self._turns.step_aside(member)
        wanted = not unwanted()
        if wanted:
            self._turns.take(member)
        await self._tell()  # whoever was behind it is the first now
        return wanted

    async def made_room(self, member: int, incarnation: str) -> None:
        """Note that a member's workers have left."""
        if self._line(member).incarnation == incarnation:
            self._turns.give_back(member)
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
                or bool((self._stopping or self._ending) and not standing.live.get("busy"))
            )
        )
        if line.incarnation != incarnation or (self._stopping and standing.generation < generation):
            return None
        if standing.row is None:  # the search ends before its first generation did
            return None
        standing.over = self._over(standing)
        return {**standing.row, "score": self.score(standing.row), "over": standing.over}

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

    async def give_up(self, member: int, incarnation: str, why: str) -> None:
        """Note that a member's workers were lost too often; a resumed search tries again."""
        standing = self._members[member]
        if self._line(member).incarnation == incarnation and not standing.dead:
            standing.dead = f"{GIVEN_UP}: {why}"
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
            self._turns.take(member)  # this may be a new switchboard, that gave no turns yet
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
        self, member: int, incarnation: str, row: Mapping[str, Any], state: list[Any]
    ) -> tuple[bool, int | None]:
        """Note what a generation came to; return whether it was heard, and its number if it is the best so far.

        Args:
            member: its number.
            incarnation: an older one is not heard.
            row: member, generation, samples, metrics, values, samples_per_sec, state, has_parts, and exploit_sec: from
                the decision that it takes another's weights to its first step with them, if it did.
            state: the reference of the state, in a list, so that Ray does not fetch it.
        """
        line, standing = self._line(member), self._members[member]
        if line.incarnation != incarnation:
            return False, None
        if state:
            line.published = row["samples"], state
        standing.live = {**standing.live, "busy": False, "state": "waiting", "samples": row["samples"]}
        if standing.generation < row["generation"]:  # else, after a death, the same steps once more
            whole = {**row, "fitness": self._fitness(row), "root": standing.root, "time": time.time()}
            self._population.append(whole)
            standing.rows.append(whole)
        await self._tell()
        # Told again after a death too: that may have been before it was kept.
        rows = self._population.rows
        scored = [(score, -index) for index, score in enumerate(map(self.score, rows)) if score is not None]
        if not scored:
            return True, None
        best = -max(scored)[1]
        this = (member, row["generation"]) == (rows[best]["member"], rows[best]["generation"])
        return True, best + 1 if this else None

    async def loaded(self, member: int, incarnation: str, facts: Mapping[str, Any]) -> None:
        """Note which state a member really took: seq, samples, state, source, seconds."""
        if self._line(member).incarnation == incarnation:
            self._note({"event": "loaded", "member": member, **facts})
            self._members[member].learn(facts)

    async def fetch(self, donor: int, samples: int, *, patient: bool = False) -> list[Any] | None:
        """Return the reference of a state, in a list, if it is the one that a member published last.

        Patiently: that one is lost, and a donor that may be on its way to this sample once more is waited for.
        """
        line, standing = self._line(donor), self._members[donor]
        lost = line.published if patient else None

        def there() -> bool:
            return line.published is not None and line.published is not lost and line.published[0] == samples

        if patient and standing.dead is None and standing.samples <= samples:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._until(there), DONOR_SEC)
        return line.published[1] if line.published is not None and there() else None

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
            others=[self._candidate(other) for other in living if other not in donors],
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
        self._note(*exploit_rows(seq, taker, giver, values, how, gap))
        taker.take(self._lineage.rows[-2])
        await self._tell()
        return seq

    # --- what the driver calls ----------------------------------------------------------------------------------------

    async def stop(self, reason: str) -> None:
        """Have every member save what there is, at the next sample."""
        self._stopping = self._stopping or reason
        await self._tell()

    async def look(self) -> tuple[dict[int, Standing], str | None, str | None]:
        """Return where everyone stands; why the search stops, if it does; and what was refused."""
        return {number: replace(standing) for number, standing in self._members.items()}, self._stopping, self.refusal

    def close(self) -> None:
        """Close the journals."""
        self._lineage.close()
        self._population.close()

    # --- inside -------------------------------------------------------------------------------------------------------

    def score(self, row: Row) -> float | None:
        """Return a row's fitness as a number of which more is better; None where it has diverged."""
        return self._search.fitness.score(row["fitness"])

    def _fitness(self, row: Mapping[str, Any]) -> float | None:
        if row["state"] != "trained":
            return None
        natural = self._search.fitness.natural(row["metrics"], self._search.priced(row["values"]))
        return natural if np.isfinite(natural) else None

    def _candidate(self, member: int) -> Candidate:
        row = self._members[member].row
        if row is None:
            return Candidate(member, None, member)
        # By the row: a member that has taken weights since then still gives what it had.
        return Candidate(member, self.score(row), row["root"], self._parts_of(row), row["values"])

    def _parts_of(self, row: Row) -> Parts | None:
        member, samples = row["member"], row["samples"]
        if self._parts.get(member, (None,))[0] != samples:
            self._parts[member] = samples, read_parts(self._directory, member, samples)
        return self._parts[member][1]

    def _over(self, standing: Standing) -> str | None:
        """Return why the search ends for a member here, if it does."""
        if standing.generation >= self._search.generations:
            return "finished"
        if self._ending is None:
            hours = (time.time() - self._began) / 3600
            self._ending = why_over(self._search, self._members.values(), self._population.rows, hours)
            if self._ending == DIVERGED:
                self._stopping = self._ending
        return self._ending

    def _pending(self, member: int, *, samples: int, seq: int) -> Order | None:
        """Return what a member at a clock, whose weights know the exploits up to ``seq``, is to do next."""
        line = self._line(member)
        for order in self._members[member].orders:
            # A checkpoint of a later clock knows of it: there is none between an exploit and the training after it.
            if order.seq > seq and order.samples >= samples:
                return order
        idle = line.target is None or line.target.until <= samples
        if line.leaving or self._stopping or (idle and self._turns.crowded):
            return Leave()
        if idle:
            return None
        # To the next end, not to the last one asked for: what was told of and not kept is told of again.
        generation = samples // self._search.generation_samples + 1
        return Train(generation * self._search.generation_samples, generation)

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
