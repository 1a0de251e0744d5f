"""What members are told, by a switchboard of their own: all in one event loop, the journals on disk."""

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.run import read_rows
from shoal_ray.population.directory import SearchDirectory
from shoal_ray.population.exploit import Parts
from shoal_ray.population.journal import events
from shoal_ray.population.orders import Become, Leave, Order, Train
from shoal_ray.population.parts import write_parts
from shoal_ray.population.standing import Standing
from shoal_ray.population.switchboard import Switchboard

MakeSearch = Callable[..., SearchDirectory]
Told = Callable[..., dict[str, Any]]
VALUES = {"optim.lr": 2e-3, "nets.latent": 8}


@asynccontextmanager
async def open_board(
    directory: SearchDirectory, slots: int = 4, began: float | None = None
) -> AsyncIterator[Switchboard]:
    """Open the switchboard of a search that began just now."""
    with closing(Switchboard(str(directory.path), slots, time.time() if began is None else began)) as board:
        yield board


async def started(board: Switchboard, *members: int, incarnation: str = "a") -> None:
    for member in members or range(4):
        await board.register(member, incarnation)


async def waits(task: "asyncio.Task[Any]") -> bool:
    """Tell whether a task still waits, when everyone has done what there is to do."""
    for _ in range(20):
        await asyncio.sleep(0)
    return not task.done()


async def orders(board: Switchboard, member: int, samples: int, seq: int, incarnation: str = "a") -> list[Order]:
    """Return what workers at a clock, that know of the exploits up to ``seq``, are told until they may leave."""
    found: list[Order] = []
    while not found or found[-1] != Leave():
        group = f"{member}/{samples}/{seq}"
        order = await board.next(member, incarnation, group, len(found), samples=samples, seq=seq)
        found.append(order)
        if isinstance(order, Become):
            samples, seq = order.samples, order.seq
    return found


def seqs(given: Sequence[Order]) -> list[int]:
    return [order.seq for order in given if isinstance(order, Become)]


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def within_reason() -> None:
        await asyncio.wait_for(scenario(), 30)

    asyncio.run(within_reason())


# --- incarnations -----------------------------------------------------------------------------------------------------


def test_of_two_incarnations_the_older_is_told_to_leave_and_not_heard(make_search: MakeSearch, told: Told) -> None:
    directory = make_search()

    async def scenario() -> None:
        async with open_board(directory) as board:
            assert await board.register(0, "old") == (0, [])
            asked = asyncio.create_task(board.next(0, "old", "g", 1, samples=0, seq=0))
            trained = asyncio.create_task(board.train(0, "old", 1))
            assert await asked == Train(100, 1)
            asked = asyncio.create_task(board.next(0, "old", "g", 2, samples=100, seq=0))
            turn = asyncio.create_task(board.turn(0, "old"))
            assert await turn
            assert await waits(asked)
            await board.lives_in(0, "old", "a group")
            assert await board.register(0, "new") == (0, ["a group"])
            assert await asked == Leave()
            assert await trained is None
            assert not await board.turn(0, "old")
            assert await board.next(0, "old", "other", 1, samples=0, seq=0) == Leave()
            assert await board.trained(0, "old", told(0, 1, 0.5), []) == (False, None)
            await board.give_up(0, "old", "an old sorrow")
            await board.loaded(0, "old", {"seq": 1, "source": "own"})
            await board.progress(0, "old", {"samples": 77})
            await board.lives_in(0, "old", "another group")
            await board.leave(0, "old", final=True)
            assert await board.train(0, "old", 1) is None
            standings, _, _ = await board.look()
            assert (standings[0].generation, standings[0].samples, standings[0].dead) == (0, 0, None)
            assert await board.register(0, "new") == (0, ["a group"])  # asked again: no harm
            assert await board.trained(0, "new", told(0, 1, 0.5), []) == (True, 1)

    run(scenario)
    lineage = read_rows(directory.lineage)
    assert [row["incarnation"] for row in events(lineage, "start")] == ["old", "new"]
    assert [row["group"] for row in events(lineage, "workers")] == ["a group"]
    assert {row["event"] for row in lineage} == {"birth", "start", "workers"}
    assert [row["metrics"] for row in read_rows(directory.population)] == [{"quality/mse": 0.5}]


# --- generations ------------------------------------------------------------------------------------------------------


def test_a_generation_that_is_known_is_told_at_once_and_again(make_search: MakeSearch, told: Told) -> None:
    directory = make_search("fitness.price.nets.latent=0.01")

    async def scenario() -> None:
        async with open_board(directory) as board:
            await started(board)
            asked = asyncio.create_task(board.train(2, "a", 1))
            assert await waits(asked)
            assert await board.next(2, "a", "g", 1, samples=0, seq=0) == Train(100, 1)
            await board.trained(2, "a", told(2, 1, 0.25, latent=4), [])
            row = await asked
            assert row is not None
            assert (row["fitness"], row["score"], row["over"]) == pytest.approx((0.29, -0.29, None))
            assert await board.train(2, "a", 1) == row
        async with open_board(directory) as board:  # another one, from the journals
            assert await board.train(2, "a", 1) == row
            assert (await board.register(2, "b"))[0] == 1

    run(scenario)


def test_a_generation_that_is_trained_twice_is_one_row(make_search: MakeSearch, told: Told) -> None:
    directory = make_search()

    async def scenario() -> None:
        async with open_board(directory) as board:
            await started(board)
            assert await board.trained(0, "a", told(0, 1, 0.5), []) == (True, 1)
            assert await board.trained(1, "a", told(1, 1, 0.7), []) == (True, None)
            # The first telling may have come before a kill, and the state never to best/: it is the best still.
            assert await board.trained(0, "a", told(0, 1, 0.5), []) == (True, 1)
            assert await board.trained(1, "a", told(1, 1, 0.7), []) == (True, None)
            assert await board.trained(1, "a", told(1, 2, 0.4), []) == (True, 3)
            assert await board.trained(0, "a", told(0, 1, 0.5), []) == (True, None)

    run(scenario)
    rows = [(row["member"], row["generation"]) for row in read_rows(directory.population)]
    assert rows == [(0, 1), (1, 1), (1, 2)]


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
def test_the_best_is_numbered_where_it_is_strictly_better(
    make_search: MakeSearch, told: Told, mode: str, sign: int
) -> None:
    directory = make_search(f"fitness.mode={mode}")
    told_of = [(0, 1, None), (1, 1, 0.5), (2, 1, 0.5), (3, 1, 0.6), (0, 2, 0.4), (1, 2, float("nan")), (2, 2, 0.39)]

    async def scenario() -> None:
        async with open_board(directory) as board:
            await started(board)
            answers = [
                await board.trained(member, "a", told(member, at, mse and sign * mse), [])
                for member, at, mse in told_of
            ]
            assert answers == [(True, number) for number in (None, 2, None, None, 5, None, 7)]

    run(scenario)
    assert [row["fitness"] is None for row in read_rows(directory.population)].count(True) == 2


def test_the_state_that_was_published_last_is_the_one_that_is_fetched(make_search: MakeSearch, told: Told) -> None:
    directory, first, second = make_search(), object(), object()

    async def scenario() -> None:
        async with open_board(directory) as board:
            await started(board)
            assert await board.fetch(1, 100) is None
            await board.trained(1, "a", told(1, 1, 0.5), [first])
            assert await board.fetch(1, 100) == [first]
            assert await board.fetch(1, 200) is None
            await board.trained(1, "a", told(1, 2, None), [])  # diverged: nothing was published
            assert await board.fetch(1, 100) == [first]
            assert await board.fetch(1, 200) is None
            await board.trained(1, "a", told(1, 3, 0.4), [second])
            assert await board.fetch(1, 300) == [second]
            assert await board.fetch(1, 100) is None
            assert await board.fetch(1, 100, patient=True) is None  # it is past that, and does not come back

    run(scenario)


@pytest.mark.parametrize("rebuilt", [False, True])
def test_a_lost_donors_state_is_waited_for_until_it_is_published_again(
    make_search: MakeSearch, told: Told, rebuilt: bool
) -> None:
    directory, lost, again = make_search(), object(), object()

    async def scenario() -> None:
        async with open_board(directory) as board:
            await started(board)
            await board.trained(1, "a", told(1, 1, 0.5), [lost])
            if not rebuilt:
                await comes_back(board)
        if rebuilt:
            async with open_board(directory) as board:
                assert await board.fetch(1, 100) is None
                await comes_back(board)

    async def comes_back(board: Switchboard) -> None:
        # Its workers were lost, and nobody has told of it yet but who found that the state has gone with them.
        asked = [asyncio.create_task(board.fetch(1, 100, patient=True)) for _ in range(2)]  # two ranks of the taker
        assert [await waits(one) for one in asked] == [True, True]
        await board.progress(1, "a", {"samples": 0, "busy": False})
        trained = asyncio.create_task(board.train(1, "a", 2))
        assert await waits(trained)
        assert await board.next(1, "a", "g", 1, samples=0, seq=0) == Train(100, 1)
        asked.append(asyncio.create_task(board.fetch(1, 100, patient=True)))
        assert [await waits(one) for one in asked] == [True] * 3
        await board.trained(1, "a", told(1, 1, 0.5), [again])
        assert [await one for one in asked] == [[again]] * 3
        assert await board.fetch(1, 100) == [again]
        trained.cancel()

    run(scenario)
    assert len(read_rows(directory.population)) == 1


def test_a_donor_that_is_dead_is_not_waited_for_and_one_that_never_comes_is_not_forever(
    make_search: MakeSearch, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with open_board(make_search()) as board:
            await started(board)
            await board.give_up(0, "a", "lost")
            assert await board.fetch(0, 100, patient=True) is None
            monkeypatch.setattr("shoal_ray.population.switchboard.DONOR_SEC", 0.01)
            assert await board.fetch(1, 100, patient=True) is None

    run(scenario)


# --- orders -----------------------------------------------------------------------------------------------------------


def test_every_rank_of_a_group_hears_the_same_nth_order(make_search: MakeSearch, told: Told) -> None:
    directory = make_search()

    async def scenario() -> None:
        async with open_board(directory) as board:
            await started(board)

            async def told_ranks(turn: int, samples: int, seq: int, ranks: int = 2) -> list[Order]:
                return [await board.next(0, "a", "g", turn, samples=samples, seq=seq) for _ in range(ranks)]

            asked = asyncio.create_task(board.train(0, "a", 1))
            assert await waits(asked)
            assert await told_ranks(1, 0, 0) == [Train(100, 1)] * 2
            for member, mse in ((0, 0.9), (1, 0.1)):
                await board.trained(member, "a", told(member, 1, mse), [])
            assert await asked
            asked = asyncio.create_task(board.train(0, "a", 2))
            assert await waits(asked)
            assert await told_ranks(2, 100, 0, ranks=1) == [Train(200, 2)]
            seq = await board.exploit(0, 1, VALUES, {}, None)
            assert await told_ranks(2, 100, 0, ranks=1) == [Train(200, 2)]  # the other rank, late: not the exploit
            third = await told_ranks(3, 100, 0)
            assert third[0] == third[1]
            assert isinstance(third[0], Become)
            assert await told_ranks(4, 100, seq) == [Train(200, 2)] * 2
            # Workers that start anew are another group, and count from one.
            assert isinstance(await board.next(0, "a", "h", 1, samples=100, seq=0), Become)
            await board.stop("enough")
            assert await asked is None

    run(scenario)


def test_an_exploit_is_in_the_journal_before_it_is_an_order(make_search: MakeSearch, told: Told) -> None:
    directory = make_search()

    async def scenario() -> None:
        async with open_board(directory) as board:
            await started(board)
            for member, mse in ((0, 0.9), (1, 0.1)):
                await board.trained(member, "a", told(member, 1, mse, lr=1e-3 * (1 + member)), [])
            asked = asyncio.create_task(board.next(0, "a", "g", 1, samples=100, seq=0))
            on_disk: list[int] = []
            asked.add_done_callback(lambda _: on_disk.append(len(events(read_rows(directory.lineage), "exploit"))))
            assert await waits(asked)
            values = {"optim.lr": 2.5e-3, "nets.latent": 8}
            seq = await board.exploit(0, 1, values, {"optim.lr": "x 1.25"}, 3.5)
            order = await asked
            assert not await waits(asked)
            assert on_disk == [1]
            exploit, mutation = read_rows(directory.lineage)[-2:]
            assert order == Become(seq, 100, 1, 100, values, exploit["time"])
            assert exploit == {
                "event": "exploit",
                "seq": 1,
                "member": 0,
                "samples": 100,
                "donor": 1,
                "donor_samples": 100,
                "state": "1@100",
                "old": board_values(directory, 0),
                "new": values,
                "before": 0.9,
                "after": 0.1,
                "root": 1,
                "gap": 3.5,
                "time": exploit["time"],
            }
            # Beside what the donor's row was trained with, whatever it was born with.
            assert (mutation["event"], mutation["seq"], mutation["samples"]) == ("mutation", 1, 100)
            assert (mutation["old"], mutation["new"]) == ({"optim.lr": 2e-3}, {"optim.lr": 2.5e-3})
            assert mutation["how"] == {"optim.lr": "x 1.25"}
            assert await board.exploit(0, 1, values, {}, 3.5) == seq  # asked again after a lost answer

    run(scenario)
    assert len(events(read_rows(directory.lineage), "exploit")) == 1


def board_values(directory: SearchDirectory, member: int) -> dict[str, Any]:
    """Return the values that a member was born with."""
    return dict(directory.search.space.sample(4, directory.search.seed)[member])


def test_an_order_is_given_to_checkpoints_before_it_and_not_to_later_ones(make_search: MakeSearch, told: Told) -> None:
    directory = make_search()

    async def scenario() -> None:
        async with open_board(directory) as board:
            await started(board)
            for member, mse in ((0, 0.9), (1, 0.1)):
                await board.trained(member, "a", told(member, 1, mse), [])
            await board.exploit(0, 1, VALUES, {}, None)
            await board.trained(0, "a", told(0, 2, 0.8), [])
            await board.trained(1, "a", told(1, 2, 0.1), [])
            await board.exploit(0, 1, VALUES, {}, None)
            await board.stop("enough")

            async def given(samples: int, seq: int) -> list[int]:
                return seqs(await orders(board, 0, samples, seq))

            assert await given(0, 0) == [1, 2]  # lost all: through both
            assert await given(100, 0) == [1, 2]  # its checkpoint is of before the exploit
            assert await given(100, 1) == [2]
            assert await given(120, 0) == [2]  # was saved on the way: that was trained after the first
            assert await given(200, 1) == [2]
            assert await given(200, 2) == []
            assert await given(220, 1) == []
            assert await orders(board, 1, 0, 0) == [Leave()]  # the donor has none

    run(scenario)


def test_who_went_back_is_told_the_end_of_its_next_generation_and_not_the_last_that_was_asked_for(
    make_search: MakeSearch, told: Told
) -> None:
    directory = make_search()

    async def scenario() -> None:
        async with open_board(directory) as board:
            await started(board)
            for generation in (1, 2):
                await board.trained(0, "a", told(0, generation, 0.5), [])
            asked = asyncio.create_task(board.train(0, "a", 3))
            assert await waits(asked)
            # Killed before anything was kept; in the middle of a generation; at an end that overshot, and so does the
            # next: batches of 33.
            for samples, order in (
                (0, Train(100, 1)),
                (40, Train(100, 1)),
                (132, Train(200, 2)),
                (231, Train(300, 3)),
                (299, Train(300, 3)),
            ):
                assert await board.next(0, "a", f"from {samples}", 1, samples=samples, seq=0) == order
            assert await board.trained(0, "a", told(0, 1, 0.5), []) == (True, 1)
            assert await waits(asked)
            done = asyncio.create_task(board.next(0, "a", "at the end", 1, samples=300, seq=0))
            assert await waits(done)
            await board.trained(0, "a", told(0, 3, 0.4), [])
            assert await asked
            done.cancel()

    run(scenario)
    assert [row["generation"] for row in read_rows(directory.population)] == [1, 2, 3]


def history(board: Switchboard, told: Told) -> list[Callable[[], Awaitable[Any]]]:
    """Return what happens in a search of four members, step by step."""

    def trained(member: int, generation: int, mse: float | None) -> Callable[[], Awaitable[Any]]:
        return lambda: board.trained(member, "a", told(member, generation, mse), [])

    def loaded(member: int, seq: int, source: str) -> Callable[[], Awaitable[Any]]:
        facts = {"seq": seq, "samples": 0, "state": "", "source": source, "seconds": 0.0}
        return lambda: board.loaded(member, "a", facts)

    return [
        *(trained(member, 1, 0.1 * (1 + member)) for member in range(4)),
        lambda: board.exploit(3, 0, VALUES, {"optim.lr": "x 2"}, 4.0),
        loaded(3, 1, "memory"),
        *(trained(member, 2, 0.1 * (1 + member)) for member in range(3)),
        trained(3, 2, None),
        lambda: board.lives_in(1, "a", "of four workers"),
        lambda: board.register(1, "b"),
        lambda: board.exploit(2, 1, VALUES | {"nets.latent": 4}, {}, None),
        lambda: board.exploit(3, 2, VALUES | {"nets.latent": 16}, {}, None),
        loaded(2, 2, "own"),
        lambda: board.leave(0, "a", final=True),
        trained(3, 3, 0.05),
        lambda: board.exploit(1, 3, VALUES, {}, float("inf")),
    ]


def known(standings: Mapping[int, Standing]) -> dict[int, Any]:
    """Return what must be the same in a switchboard and in one that was rebuilt from its journals."""
    return {
        number: (one.values, one.root, one.donor, one.dead, one.incarnation, [*one.groups], [*one.rows], [*one.orders])
        for number, one in standings.items()
    }


def due(exploits: Sequence[Mapping[str, Any]], member: int, samples: int, seq: int) -> list[int]:
    """Return the orders that a member is to get, one after the other, read off the rows."""
    found: list[int] = []
    for row in exploits:
        if row["member"] == member and row["seq"] > seq and row["samples"] >= samples:
            found.append(row["seq"])
            samples, seq = row["samples"], row["seq"]
    return found


def test_a_switchboard_that_is_rebuilt_at_any_row_knows_what_the_lost_one_did(
    make_search: MakeSearch, told: Told, tmp_path: Path
) -> None:
    directory = make_search()
    lengths: list[tuple[int, int]] = []
    seen: list[dict[int, Any]] = []

    async def live() -> None:
        async with open_board(directory) as board:
            await started(board)
            for step in history(board, told):
                await step()
                lengths.append((len(read_rows(directory.lineage)), len(read_rows(directory.population))))
                seen.append(known((await board.look())[0]))

    run(live)
    lineage, population = (path.read_bytes().splitlines(True) for path in (directory.lineage, directory.population))
    exploits = events(read_rows(directory.lineage), "exploit")
    assert [row["seq"] for row in exploits] == [1, 2, 3, 4]
    rebuilt = SearchDirectory(tmp_path / "rebuilt", directory.search, directory.data)
    rebuilt.path.mkdir()
    for name in ("search.yaml", "environment.json"):
        shutil.copy(directory.path / name, rebuilt.path)

    for rows in range(lengths[0][0], len(lineage) + 1):
        steps = [step for step, length in enumerate(lengths) if length[0] >= rows]
        rebuilt.lineage.write_bytes(b"".join(lineage[:rows]) + b'{"event": "exp')  # the next row, cut off
        rebuilt.population.write_bytes(b"".join(population[: lengths[steps[0]][1]]))

        async def compare(rows: int = rows, step: int = steps[0]) -> None:
            async with open_board(rebuilt) as board:
                standings, _, _ = await board.look()
                if lengths[step][0] == rows:
                    assert known(standings) == seen[step]
                await board.stop("enough")
                journaled = [row for row in exploits if row["seq"] <= max_seq(lineage[:rows])]
                for number, one in standings.items():
                    for samples, seq in product((0, 100, 150, 200, 300), range(5)):
                        given = await orders(board, number, samples, seq, one.incarnation)
                        assert seqs(given) == due(journaled, number, samples, seq)

        run(compare)


def max_seq(lines: Sequence[bytes]) -> int:
    return max((json.loads(line).get("seq", 0) for line in lines), default=0)


# --- turns ------------------------------------------------------------------------------------------------------------


class Population:
    """Four members of a search that live as members do: one that asks for generations, and workers while it may."""

    def __init__(self, board: Switchboard, told: Told, slots: int, *, synchronous: bool) -> None:
        self.board, self.told, self.slots, self.synchronous = board, told, slots, synchronous
        self.training: set[int] = set()
        self.clocks = dict.fromkeys(range(4), 0)
        self.done = dict.fromkeys(range(4), 0)
        self.starts = dict.fromkeys(range(4), 0)
        self.barrier = asyncio.Barrier(4)

    async def live(self, member: int, generations: int) -> None:
        """Have a member trained, generation by generation, until the search is over."""
        board, workers = self.board, None
        for generation in range(1, generations + 1):
            asked = asyncio.create_task(board.train(member, "a", generation))
            while not asked.done():
                if workers is None or workers.done():
                    assert await board.turn(member, "a")
                    workers = asyncio.create_task(self.work(member))
                await asyncio.wait({asked, workers}, return_when=asyncio.FIRST_COMPLETED)
            row = asked.result()
            assert row is not None
            assert row["generation"] == generation
            self.done[member] = generation
            if self.synchronous:
                assert max(self.done.values()) - min(self.done.values()) <= 1
                assert (row["over"] is not None) == (generation == generations)
                if not row["over"]:
                    await self.barrier.wait()  # alive, with its workers, if nobody else wants their place
        await board.leave(member, "a", final=True)
        assert workers is not None
        await workers

    async def work(self, member: int) -> None:
        """Follow orders until told to leave."""
        self.training.add(member)
        self.starts[member] += 1
        assert len(self.training) <= self.slots
        turn, group = 0, f"{member}/{self.starts[member]}"
        while True:
            turn += 1
            order = await self.board.next(member, "a", group, turn, samples=self.clocks[member], seq=0)
            if not isinstance(order, Train):
                break
            await self.board.progress(member, "a", {"samples": self.clocks[member], "busy": True})
            await asyncio.sleep(0)
            self.clocks[member] = order.until
            await self.board.trained(member, "a", self.told(member, order.generation, 0.5), [])
        assert order == Leave()
        self.training.discard(member)
        await self.board.made_room(member, "a")


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize("slots", [1, 2, 3, 4])
def test_members_that_do_not_fit_train_in_turns_and_none_is_left_behind(
    make_search: MakeSearch, told: Told, slots: int, synchronous: bool
) -> None:
    directory = make_search("stop.plateau_generations=null")

    async def scenario() -> None:
        async with open_board(directory, slots) as board:
            await started(board)
            population = Population(board, told, slots, synchronous=synchronous)
            await asyncio.gather(*(population.live(member, 5) for member in range(4)))
            assert population.done == dict.fromkeys(range(4), 5)
            assert population.training == set()
            if slots == 4:  # nobody leaves a place that nobody wants
                assert population.starts == dict.fromkeys(range(4), 1)

    run(scenario)
    rows = sorted((row["member"], row["generation"]) for row in read_rows(directory.population))
    assert rows == [(member, generation) for member in range(4) for generation in range(1, 6)]
    assert [row["reason"] for row in events(read_rows(directory.lineage), "death")] == ["finished"] * 4


def test_who_is_idle_leaves_when_another_waits_and_who_has_work_does_not(make_search: MakeSearch, told: Told) -> None:
    async def scenario() -> None:
        async with open_board(make_search(), slots=2) as board:
            await started(board)
            assert await board.turn(0, "a")
            assert await board.turn(1, "a")
            await board.trained(1, "a", told(1, 1, 0.1), [])
            idle = asyncio.create_task(board.next(0, "a", "g", 1, samples=0, seq=0))
            trained = asyncio.create_task(board.train(1, "a", 2))
            assert await waits(idle)
            waiting = asyncio.create_task(board.turn(2, "a"))
            assert await idle == Leave()
            assert await board.next(0, "a", "g", 1, samples=0, seq=0) == Leave()  # its other rank
            assert await board.next(1, "a", "g", 1, samples=100, seq=0) == Train(200, 2)
            assert await waits(waiting)  # until they have gone
            await board.made_room(0, "a")
            assert await waiting
            again = asyncio.create_task(board.turn(0, "a"))  # wants its place back
            assert await waits(again)
            await board.trained(1, "a", told(1, 2, 0.1), [])
            assert await trained
            assert await board.next(1, "a", "g", 2, samples=200, seq=0) == Leave()
            await board.made_room(1, "a")
            assert await again

    run(scenario)


def test_an_order_to_take_weights_comes_before_leaving_for_another(make_search: MakeSearch, told: Told) -> None:
    async def scenario() -> None:
        async with open_board(make_search(), slots=1) as board:
            await started(board)
            assert await board.turn(0, "a")
            for member, mse in ((0, 0.9), (1, 0.1)):
                await board.trained(member, "a", told(member, 1, mse), [])
            waiting = asyncio.create_task(board.turn(1, "a"))
            seq = await board.exploit(0, 1, VALUES, {}, None)
            assert isinstance(await board.next(0, "a", "g", 1, samples=100, seq=0), Become)
            assert await board.next(0, "a", "g", 2, samples=100, seq=seq) == Leave()
            assert isinstance(await board.next(0, "a", "h", 1, samples=100, seq=0), Become)  # not kept: once more
            assert await waits(waiting)
            await board.made_room(0, "a")
            assert await waiting

    run(scenario)


def test_a_turn_is_given_in_the_order_of_asking_and_to_who_speaks_for_the_member(make_search: MakeSearch) -> None:
    async def scenario() -> None:
        async with open_board(make_search(), slots=1) as board:
            await started(board)
            assert await board.turn(0, "a")
            asked = {}
            for member in (2, 1, 3):
                asked[member] = asyncio.create_task(board.turn(member, "a"))
                assert await waits(asked[member])
            assert await board.turn(0, "a")  # has it already
            await board.register(2, "b")
            assert await asked[2] is False
            again = asyncio.create_task(board.turn(2, "b"))
            assert await waits(again)
            for member, gone in ((1, 0), (3, 1)):
                assert await waits(asked[member])
                await board.made_room(gone, "a")
                assert await asked[member]
            await board.made_room(3, "stranger")
            assert await waits(again)
            await board.register(3, "b")  # its workers were lost with it
            assert await again

    run(scenario)


def test_a_new_incarnation_does_not_lose_its_place_to_the_end_of_the_old_one(make_search: MakeSearch) -> None:
    async def scenario() -> None:
        async with open_board(make_search(), slots=1) as board:
            await started(board)
            assert await board.turn(0, "a")
            old = asyncio.create_task(board.turn(1, "a"))
            assert await waits(old)

            async def reborn() -> bool:
                await board.register(1, "b")
                return await board.turn(1, "b")  # at once, before the old one has heard

            new = asyncio.create_task(reborn())
            assert await waits(new)
            assert await old is False
            await board.made_room(0, "a")
            assert await new

    run(scenario)


def test_who_is_to_leave_or_dead_gets_no_turn_and_holds_nobody_up(make_search: MakeSearch) -> None:
    directory = make_search()

    async def scenario() -> None:
        async with open_board(directory, slots=1) as board:
            await started(board)
            assert await board.turn(0, "a")
            asked = [asyncio.create_task(board.turn(member, "a")) for member in (1, 2, 3)]
            assert [await waits(one) for one in asked] == [True] * 3
            await board.leave(1, "a")
            await board.give_up(2, "a", "10 workers were lost")
            assert [await asked[0], await asked[1]] == [False, False]
            assert await waits(asked[2])
            await board.made_room(0, "a")
            assert await asked[2]
            assert not await board.turn(1, "a")
            assert not await board.turn(2, "a")
            await board.register(1, "b")
            await board.made_room(3, "a")
            assert await board.turn(1, "b")

    run(scenario)


def test_who_is_given_up_is_dead_once_and_tried_again_by_a_resumed_search(make_search: MakeSearch) -> None:
    directory = make_search()

    async def scenario() -> None:
        async with open_board(directory) as board:
            await started(board)
            await board.give_up(0, "a", "no node")
            await board.give_up(0, "a", "still no node")
            await board.leave(0, "a", final=True)
            standings, reason, refusal = await board.look()
            assert (standings[0].dead, reason, refusal) == ("given up: no node", None, None)  # the others go on
        async with open_board(directory) as board:
            assert (await board.look())[0][0].dead == "given up: no node"
            await board.register(0, "b")
            assert (await board.look())[0][0].dead is None
            assert await board.turn(0, "b")

    run(scenario)
    assert [row["reason"] for row in events(read_rows(directory.lineage), "death")] == ["given up: no node"]


# --- the end ----------------------------------------------------------------------------------------------------------


def test_stopping_waits_for_those_who_are_busy_and_sends_all_away(make_search: MakeSearch, told: Told) -> None:
    directory = make_search()

    async def scenario() -> None:
        async with open_board(directory, slots=4) as board:
            await started(board)
            await asyncio.gather(*(board.turn(member, "a") for member in range(3)))
            trained = [asyncio.create_task(board.train(member, "a", 1)) for member in range(3)]
            await board.progress(0, "a", {"samples": 40, "busy": True})
            idle = asyncio.create_task(board.next(1, "a", "g", 1, samples=100, seq=0))
            assert await waits(idle)
            assert not await board.is_set()
            await board.stop("it was asked to")
            assert await board.is_set()
            assert await board.turn(3, "a") is False
            assert await trained[1] is await trained[2] is None
            assert await waits(trained[0])  # it saves what there is first
            assert await idle == Leave()
            assert await board.next(0, "a", "g", 1, samples=40, seq=0) == Leave()
            await board.progress(0, "a", {"samples": 40, "busy": False, "state": "stopped"})
            assert await trained[0] is None
            await board.stop("another reason")
            await board.leave(0, "a", final=True)
            standings, reason, refusal = await board.look()
            assert (reason, refusal, standings[0].samples, standings[0].dead) == ("it was asked to", None, 40, None)

    run(scenario)
    assert not events(read_rows(directory.lineage), "death")


def test_who_waits_for_a_turn_when_the_search_stops_gets_none(make_search: MakeSearch) -> None:
    async def scenario() -> None:
        async with open_board(make_search(), slots=1) as board:
            await started(board)
            assert await board.turn(0, "a")
            turns = [asyncio.create_task(board.turn(member, "a")) for member in (1, 2)]
            assert [await waits(turn) for turn in turns] == [True, True]
            await board.stop("it was asked to")
            assert [await turn for turn in turns] == [False, False]

    run(scenario)


def test_what_a_user_can_mend_stops_the_search_and_the_first_reason_stays(make_search: MakeSearch) -> None:
    async def scenario() -> None:
        async with open_board(make_search()) as board:
            await started(board)
            await board.refuse("a full disk")
            await board.refuse("something else")
            assert (await board.look())[1:] == ("a full disk", "a full disk")

    run(scenario)


async def one_generation(board: Switchboard, told: Told, generation: int, *scores: float | None) -> list[str | None]:
    """Train a generation, one member after the other; return why the search ends for each, where it is asked."""
    found = []
    for member, mse in enumerate(scores):
        await board.trained(member, "a", told(member, generation, mse), [])
        row = await board.train(member, "a", generation)
        assert row is not None
        found.append(row["over"])
    return found


def test_a_search_of_which_all_have_diverged_stops_with_this_reason(make_search: MakeSearch, told: Told) -> None:
    async def scenario() -> None:
        async with open_board(make_search()) as board:
            await started(board)
            assert await one_generation(board, told, 1, 0.5, None, None, 0.5) == [None] * 4
            lost = "all members have diverged"
            assert await one_generation(board, told, 2, None, None, None, None) == [None, None, None, lost]
            assert (await board.look())[1] == lost
            assert await board.train(0, "a", 3) is None
            await board.leave(3, "a", final=True)
            assert (await board.look())[0][3].dead == lost

    run(scenario)


def test_who_is_dead_has_no_say_in_whether_all_have_diverged(make_search: MakeSearch, told: Told) -> None:
    async def scenario() -> None:
        async with open_board(make_search()) as board:
            await started(board)
            assert await one_generation(board, told, 1, 0.5, 0.5, None) == [None] * 3
            for member in (0, 1):
                await board.leave(member, "a", final=True)
            assert (await board.look())[0][0].dead == "stopped early"
            assert await one_generation(board, told, 2) == []
            await board.trained(3, "a", told(3, 1, None), [])
            row = await board.train(3, "a", 1)
            assert row is not None
            assert row["over"] == "all members have diverged"

    run(scenario)


@pytest.mark.parametrize("algorithm", ["random", "asha"])
def test_where_no_weights_are_taken_all_have_diverged_only_if_nobody_came_to_anything(
    make_search: MakeSearch, told: Told, algorithm: str
) -> None:
    lost = "all members have diverged"

    async def some(board: Switchboard) -> None:
        await started(board)
        assert await one_generation(board, told, 1, 0.5, None) == [None, None]
        for member in (0, 1):
            await board.leave(member, "a", final=True)
        for member in (2, 3):
            await board.trained(member, "a", told(member, 1, None), [])
            row = await board.train(member, "a", 1)
            assert row is not None
            assert row["over"] is None  # one has a fitness, though it is dead
            await board.leave(member, "a", final=True)

    async def none(board: Switchboard) -> None:
        await started(board)
        for member in range(4):
            await board.trained(member, "a", told(member, 1, None), [])
            row = await board.train(member, "a", 1)
            assert row is not None
            assert row["over"] == (lost if member == 3 else None)  # who has not begun yet may do better
            await board.leave(member, "a", final=True)

    async def scenario() -> None:
        for name, happens in (("some", some), ("none", none)):
            async with open_board(make_search(f"algorithm={algorithm}", name=name)) as board:
                await happens(board)

    run(scenario)


def test_the_last_generation_finishes_and_a_member_dies_once(make_search: MakeSearch, told: Told) -> None:
    directory = make_search("generations=2")

    async def scenario() -> None:
        async with open_board(directory) as board:
            await started(board)
            assert await one_generation(board, told, 1, 0.5, 0.6, 0.7, 0.8) == [None] * 4
            assert await one_generation(board, told, 2, 0.5, 0.6, 0.7, None) == ["finished"] * 4
            for member in (0, 0, 1):
                await board.leave(member, "a", final=True)
            await board.leave(2, "a")
            assert await board.next(2, "a", "g", 1, samples=200, seq=0) == Leave()

    run(scenario)
    deaths = events(read_rows(directory.lineage), "death")
    assert [(row["member"], row["samples"], row["reason"]) for row in deaths] == [
        (0, 200, "finished"),
        (1, 200, "finished"),
    ]


def test_a_plateau_is_counted_from_the_first_time_that_the_best_was_reached(
    make_search: MakeSearch, told: Told
) -> None:
    async def scenario() -> None:
        async with open_board(make_search("stop.plateau_generations=2", "generations=9")) as board:
            await started(board)
            over = "no better best for 2 generations"
            assert await one_generation(board, told, 1, 0.5, 0.6, 0.7, None) == [None] * 4
            assert await one_generation(board, told, 2, 0.5, 0.6, 0.7, 0.8) == [None] * 4
            assert await one_generation(board, told, 3, 0.6, 0.6, 0.4, 0.8) == [None] * 4
            assert await one_generation(board, told, 4, 0.4, 0.6, 0.5, 0.8) == [None] * 4
            # Told when the last member is two generations past the best of the third.
            assert await one_generation(board, told, 5, 0.4, 0.6, 0.5, 0.8) == [None, None, None, over]

    run(scenario)


def test_an_end_is_the_end_for_all_whatever_they_come_to_since(make_search: MakeSearch, told: Told) -> None:
    over = "no better best for 1 generations"

    async def scenario() -> None:
        async with open_board(make_search("stop.plateau_generations=1", "generations=9")) as board:
            await started(board)
            assert await one_generation(board, told, 1, 0.5, 0.6, 0.7, 0.8) == [None] * 4
            for member in (0, 1, 2):
                await board.trained(member, "a", told(member, 2, 0.5), [])
            known = await board.train(0, "a", 2)
            assert known is not None
            assert known["over"] is None
            idle = asyncio.create_task(board.train(0, "a", 3))
            busy = asyncio.create_task(board.train(1, "a", 3))
            await board.progress(1, "a", {"samples": 220, "busy": True})
            assert [await waits(idle), await waits(busy)] == [True, True]
            await board.trained(3, "a", told(3, 2, 0.8), [])
            last = await board.train(3, "a", 2)
            assert last is not None
            assert last["over"] == over
            row = await idle
            assert row is not None
            assert (row["generation"], row["over"]) == (2, over)
            assert await waits(busy)  # comes to the end of its generation first
            await board.trained(1, "a", told(1, 3, 0.1), [])  # a better best, too late
            row = await busy
            assert row is not None
            assert (row["generation"], row["over"]) == (3, over)
            row = await board.train(2, "a", 2)
            assert row is not None
            assert row["over"] == over
            assert (await board.look())[1] is None  # it is no stop: nothing is saved half-way

    run(scenario)


def test_hours_count_from_when_the_driver_began_and_end_the_search_before_a_first_generation_too(
    make_search: MakeSearch, told: Told
) -> None:
    directory, over = make_search("stop.hours=2"), "stop.hours=2 are over"

    async def scenario() -> None:
        async with open_board(directory, began=time.time() - 3600) as board:
            await started(board)
            assert await one_generation(board, told, 1, 0.5) == [None]
        async with open_board(directory, began=time.time() - 7201) as board:  # a new switchboard of the same driver
            waiting = asyncio.create_task(board.train(3, "a", 1))
            assert await waits(waiting)
            await board.trained(1, "a", told(1, 1, 0.4), [])
            row = await board.train(1, "a", 1)
            assert row is not None
            assert row["over"] == over
            assert await waiting is None  # it has come to nothing yet

    run(scenario)


# --- the choice of a donor --------------------------------------------------------------------------------------------


NOISE = np.random.default_rng(0).normal(size=9)


async def measured(
    board: Switchboard,
    directory: SearchDirectory,
    told: Told,
    member: int,
    mse: float,
    noise: Parts,
    generation: int = 1,
) -> None:
    """Tell of a generation and of what it was measured on: more is better in the parts, they are signed."""
    write_parts(directory, member, 100 * generation, -mse + noise)
    row = told(member, generation, mse, lr=1e-3 * (1 + member), has_parts=True)
    await board.trained(member, "a", row, [])


@pytest.mark.parametrize("rebuilt", [False, True])
def test_a_donor_is_chosen_by_what_was_measured_and_once_at_a_clock(
    make_search: MakeSearch, told: Told, rebuilt: bool
) -> None:
    directory = make_search("exploit.min_gap=2", "exploit.max_share=0.5")

    async def measure(board: Switchboard) -> None:
        await started(board)
        for member, mse in enumerate((0.5, 0.4, 0.4, 0.9)):
            await measured(
                board,
                directory,
                told,
                member,
                mse,
                NOISE - NOISE.mean() if member == 2 else (1 + member) * 1e-3 * NOISE,
            )

    async def choose(board: Switchboard) -> None:
        unsure = await board.choose(0, [2])
        assert unsure.donor is None
        # The differences are 0.1 and the noise of both.
        wild = NOISE - NOISE.mean() - 1e-3 * NOISE
        assert f"the lead of 2 is {0.1 / (np.std(wild, ddof=1) / 3):.2f} standard errors, less than" in unsure.why
        assert (await board.choose(0, [0, 3])).why == "3 is no better"
        choice = await board.choose(0, [1, 2, 3])
        assert choice == await board.choose(0, [1, 2, 3])
        assert (choice.donor, choice.values) == (1, {"optim.lr": 2e-3, "nets.latent": 8})
        assert choice.gap == pytest.approx(0.1 / (np.std(1e-3 * NOISE, ddof=1) / 3), rel=1e-9)
        await board.exploit(0, 1, VALUES, {}, choice.gap)
        assert (await board.choose(0, [1])).why == "it has taken weights at this clock already"
        assert (await board.choose(3, [1])).donor == 2  # 3 of 4 would descend from member 1
        await board.leave(0, "a", final=True)  # the dead do not count
        assert "2 of 3 would descend from member 1" in (await board.choose(3, [1])).why
        assert (await board.choose(3, [2])).donor is None

    async def scenario() -> None:
        async with open_board(directory) as board:
            await measure(board)
            if not rebuilt:
                await choose(board)
        if rebuilt:
            async with open_board(directory) as board:
                await choose(board)

    run(scenario)


def test_a_lead_is_of_the_generation_that_was_told_of_last_and_not_known_where_its_parts_are_lost(
    make_search: MakeSearch, told: Told
) -> None:
    directory = make_search("exploit.min_gap=2")

    async def scenario() -> None:
        async with open_board(directory) as board:
            await started(board)
            for member, mse in ((0, 0.5), (1, 0.4)):
                await measured(board, directory, told, member, mse, (1 + member) * 1e-3 * NOISE)
            assert (await board.choose(0, [1])).donor == 1
            await measured(board, directory, told, 1, 0.45, 1e3 * NOISE, generation=2)
            assert "less than exploit.min_gap=2" in (await board.choose(0, [1])).why
            # On disk before its generation is told of: that is what it was so far.
            write_parts(directory, 1, 300, -0.3 + 2e-3 * NOISE)
            assert (await board.choose(0, [1])).donor is None
        for path in directory.member(1).glob("parts/*200.npy"):
            path.unlink()
        async with open_board(directory) as board:
            assert "the lead of 1 is not known" in (await board.choose(0, [1])).why

    run(scenario)


@pytest.mark.parametrize("rebuilt", [False, True])
def test_a_donor_that_has_taken_weights_since_still_gives_what_its_row_says(
    make_search: MakeSearch, told: Told, rebuilt: bool
) -> None:
    directory, taken = make_search(), VALUES | {"nets.latent": 4}
    given = {"optim.lr": 5e-3, "nets.latent": 16}

    async def exploited(board: Switchboard) -> None:
        await started(board)
        for member, mse in ((0, 0.9), (1, 0.5), (2, 0.1)):
            row = told(member, 1, mse, lr=5e-3, latent=16) if member == 1 else told(member, 1, mse)
            await board.trained(member, "a", row, [])
        await board.exploit(1, 2, taken, {}, None)
        await board.loaded(1, "a", {"seq": 1, "samples": 100, "state": "2@100", "source": "memory"})

    async def takes(board: Switchboard) -> None:
        choice = await board.choose(0, [1])
        assert (choice.donor, choice.values) == (1, given)
        await board.exploit(0, 1, {"optim.lr": 5e-3, "nets.latent": 8}, {}, None)
        standings, _, _ = await board.look()
        assert [standings[member].root for member in (0, 1, 2)] == [1, 2, 2]
        # What it trains from here on is of the other root.
        await board.trained(1, "a", told(1, 2, 0.3), [])
        assert standings[1].values == taken

    async def scenario() -> None:
        async with open_board(directory) as board:
            await exploited(board)
            if not rebuilt:
                await takes(board)
        if rebuilt:
            async with open_board(directory) as board:
                await takes(board)

    run(scenario)
    exploit, mutation = read_rows(directory.lineage)[-2:]
    assert (exploit["donor"], exploit["root"], exploit["state"]) == (1, 1, "1@100")
    assert (mutation["old"], mutation["new"]) == ({"nets.latent": 16}, {"nets.latent": 8})
    assert [(row["member"], row["root"]) for row in read_rows(directory.population)] == [(0, 0), (1, 1), (2, 2), (1, 2)]
