"""What the terminal shows of a search: the lines of a log, and the table of a terminal."""

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import pytest
from rich.console import Console

from shoal.run import read_rows
from shoal_ray.population.directory import SearchDirectory
from shoal_ray.population.journal import Journal
from shoal_ray.population.standing import Standing, standings
from shoal_ray.population.view import SearchView

MakeSearch = Callable[..., SearchDirectory]
Told = Callable[..., dict[str, Any]]


def exploit(seq: int, member: int, donor: int) -> Sequence[dict[str, Any]]:
    common = {"seq": seq, "member": member, "samples": 100, "time": 0.0}
    values = {"optim.lr": 0.002, "nets.latent": 16}
    return [
        {
            **common,
            "event": "exploit",
            "donor": donor,
            "donor_samples": 100,
            "new": values,
            "before": 0.9,
            "after": 0.1,
            "root": donor,
            "gap": None,
        },
        {**common, "event": "mutation", "old": {"nets.latent": 8}, "new": {"nets.latent": 16}, "how": {}},
    ]


class Search:
    """A search's journals, and the view of it."""

    def __init__(self, directory: SearchDirectory, console: Console) -> None:
        self.directory = directory
        self.view = SearchView(directory, console)

    def tell(self, *rows: Mapping[str, Any]) -> dict[int, Standing]:
        """Write rows and show them."""
        for path, wanted in ((self.directory.lineage, True), (self.directory.population, False)):
            with closing(Journal(path)) as journal:
                journal.append(*(row for row in rows if ("event" in row) == wanted))
        found = standings(read_rows(self.directory.lineage), read_rows(self.directory.population))
        self.view.look(found)
        return found


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def search(make_search: MakeSearch, out: io.StringIO) -> Search:
    return Search(make_search(), Console(file=out, width=300))


def test_a_log_says_each_exploit_and_each_generation_once(search: Search, out: io.StringIO, told: Told) -> None:
    with search.view:
        search.tell()
        search.tell(*({**told(member, 1, 1.0), "fitness": 0.1 * (1 + member)} for member in range(3)))
        assert out.getvalue() == ""  # the fourth is still at it
        search.tell({**told(3, 1, None), "fitness": None})
        search.tell()
        search.tell(*exploit(1, 3, 0))
        search.tell(*({**told(member, 2, 1.0), "fitness": 0.1} for member in range(4)))
    first, second, third = out.getvalue().splitlines()
    assert first.startswith("generation 1 of 5: best 0.1 (member 0), 0 exploits, ")
    assert first.partition(" ETA ")[2] != ""
    assert second == "member 3 takes member 0's weights at 100 (0.9 -> 0.1): nets.latent 8 -> 16"
    assert third.startswith("generation 2 of 5: best 0.1 (member 0), 1 exploits, ")


def test_a_log_says_what_went_wrong(search: Search, out: io.StringIO) -> None:
    def loaded(source: str) -> dict[str, Any]:
        return {"event": "loaded", "seq": 1, "member": 3, "samples": 100, "state": "0@100", "source": source}

    start = {"event": "start", "member": 1, "samples": 0, "incarnation": "a"}
    search.tell(start)
    search.tell(*exploit(1, 3, 0), loaded("memory"), loaded("checkpoint"), {**loaded("own"), "state": "3@100"})
    search.tell({**start, "samples": 100, "incarnation": "b"})
    search.tell({"event": "death", "member": 2, "samples": 1200, "reason": "stopped early"})
    search.tell({"event": "death", "member": 3, "samples": 500, "reason": "finished"})
    assert out.getvalue().splitlines()[1:] == [
        "member 3: 0@100 from disk",
        "member 3: 3@100 the donor's state is lost: its own weights stay",
        "member 1 is started again at 100",
        "member 2 stopped early at 1,200",
    ]


def test_what_was_told_before_a_resume_is_not_told_again(make_search: MakeSearch, out: io.StringIO, told: Told) -> None:
    directory = make_search()
    before = Search(directory, Console(file=io.StringIO()))
    orders = exploit(1, 3, 0)
    before.tell(orders[0])
    search = Search(directory, Console(file=out, width=300))
    search.tell(orders[1])  # the view began between an exploit and its mutation: there is nothing to tell it with
    assert out.getvalue() == ""


def test_a_closed_or_broken_file_never_ends_a_search(make_search: MakeSearch, told: Told) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "no space left on device")

    class Left(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError(32, "broken pipe")

    for number, (file, terminal) in enumerate([(io.StringIO(), False), (io.StringIO(), True), (Full(), False)]):
        directory = make_search(name=f"search-{number}")
        search = Search(directory, Console(file=file, force_terminal=terminal))
        with search.view:
            search.tell()
            file.close() if number < 2 else None
            search.tell(*exploit(1, 3, 0), *({**told(member, 1, 1.0), "fitness": 0.5} for member in range(4)))
            search.view.note("still there")


def test_a_terminal_shows_a_table_of_members(make_search: MakeSearch, told: Told) -> None:
    file = io.StringIO()
    search = Search(make_search(), Console(file=file, force_terminal=True, width=140))
    with search.view:
        search.tell({**told(0, 1, 1.0), "fitness": 0.25}, {**told(1, 1, None), "fitness": None})
        found = search.tell(*exploit(1, 1, 0), {"event": "death", "member": 2, "samples": 0, "reason": "lost"})
        found[0].live.update(samples=150, samples_per_sec=1234.5, state="training")
        search.view.look(found)
    shown = file.getvalue()
    for word in (
        "search: quality/mse",
        "member",
        "lr",
        "latent",
        "0.25",
        "diverged",
        "150",
        "1,234",
        "training",
        "lost",
    ):
        assert word in shown, word
    assert "member 1 takes member 0's weights at 100" in shown
    assert "generation 0 of 5: best 0.25 (member 0), 1 exploits" in shown
