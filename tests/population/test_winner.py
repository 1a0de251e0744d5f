"""The winning line as a plain run, from journals written by hand."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from shoal.config import build_config, read_config
from shoal.data import DataSet
from shoal.errors import RunError
from shoal.loop import check
from shoal_ray.population.directory import SearchDirectory
from shoal_ray.population.winner import best_line, winner

Row = dict[str, Any]
LR, LATENT = "optim.lr", "nets.latent"


def values(lr: float, latent: int = 8) -> dict[str, Any]:
    return {LR: lr, LATENT: latent}


def birth(member: int, lr: float, latent: int = 8) -> Row:
    return {"event": "birth", "member": member, "samples": 0, "new": values(lr, latent), "time": 0.0}


def exploit(seq: int, member: int, samples: int, donor: int, at: int, lr: float, latent: int = 8) -> Row:
    return {
        "event": "exploit",
        "seq": seq,
        "member": member,
        "samples": samples,
        "donor": donor,
        "donor_samples": at,
        "state": f"{donor}@{at}",
        "old": {},
        "new": values(lr, latent),
        "before": 1.0,
        "after": 0.5,
        "root": donor,
        "gap": None,
        "time": 0.0,
    }


def loaded(seq: int, member: int, samples: int, state: str, source: str) -> Row:
    return {"event": "loaded", "seq": seq, "member": member, "samples": samples, "state": state, "source": source}


def rows(fitness: dict[int, Sequence[float]]) -> list[Row]:
    """Return rows of 100 samples per generation."""
    return [
        {"member": member, "generation": at, "samples": 100 * at, "fitness": one, "metrics": {}, "values": {}}
        for member, history in fitness.items()
        for at, one in enumerate(history, 1)
    ]


@pytest.fixture
def told(make_search: Callable[..., SearchDirectory]) -> Callable[..., SearchDirectory]:
    """Return ``told(lineage, population, best, *overrides)``: a search with these journals and this (member, clock)."""

    def make(
        lineage: Sequence[Row], population: Sequence[Row], best: tuple[int, int] | None, *overrides: str
    ) -> SearchDirectory:
        directory = make_search(*overrides)
        if best is not None:
            directory.best.mkdir()
            (row,) = (row for row in population if (row["member"], row["samples"]) == best)
            (directory.best / "origin.json").write_text(json.dumps(row))
        for path, journal in ((directory.lineage, lineage), (directory.population, population)):
            path.write_text("".join(json.dumps(row) + "\n" for row in journal))
        return directory

    return make


def test_the_winner_begins_as_its_root_and_changes_where_its_weights_did(
    told: Callable[..., SearchDirectory],
) -> None:
    directory = told(
        [
            birth(0, 0.001, 4),
            birth(1, 0.002, 8),
            birth(2, 0.003, 16),
            exploit(1, 2, 200, 1, 200, 0.004, 8),
            exploit(2, 0, 300, 2, 300, 0.004, 16),  # the lr stays: only the latent changes
            loaded(1, 2, 200, "1@200", "memory"),
            loaded(2, 0, 300, "2@300", "memory"),
            exploit(3, 1, 400, 0, 400, 0.009, 4),  # not of the winning line
        ],
        rows({0: [9, 8, 7, 2, 1], 1: [5, 4, 4, 4, 3], 2: [9, 9, 3, 3, 3]}),
        (0, 500),
    )
    found = winner(directory)
    assert found.changes == {200: {LR: 0.004}, 300: {LATENT: 16}}
    first = directory.member_config(1, values(0.002, 8), DataSet.open(directory.data))
    assert found.init_seed == first.init_seed == found.seed + 1
    assert found.model_copy(update={"changes": {}}) == first
    assert found.duration_samples == directory.search.samples == 500
    assert best_line(directory)[1] == 500
    assert build_config(found.model_dump(mode="json")) == found
    check(found, DataSet.open(directory.data), workers=1)


@pytest.mark.parametrize(
    ("best", "first", "changes"),
    [
        ((0, 100), 0, {}),
        ((0, 200), 0, {}),  # at the clock where it took other weights: of before
        ((0, 300), 1, {200: {LR: 0.003}}),
        ((1, 200), 1, {}),
        ((1, 300), 1, {}),
        ((1, 400), 1, {200: {LR: 0.003}, 300: {LR: 0.004}}),
    ],
)
def test_the_winner_is_what_lies_in_best_and_ends_where_that_was_measured(
    told: Callable[..., SearchDirectory], best: tuple[int, int], first: int, changes: dict[int, Any]
) -> None:
    # Whatever the members came to since: their last fitness is better, as after an interrupted write, or worse.
    directory = told(
        [
            birth(0, 0.001),
            birth(1, 0.002),
            exploit(1, 0, 200, 1, 200, 0.003),
            exploit(2, 1, 300, 0, 300, 0.004),
            exploit(3, 0, 400, 1, 400, 0.005),
        ],
        rows({0: [1, 2, 3, 4, 9], 1: [4, 3, 2, 1, 0.5]}),
        best,
    )
    found = winner(directory)
    line, end = best_line(directory)
    assert (line[-1].member, end) == best
    assert (line[0].member, line[0].start_samples) == (first, 0)
    assert (found.init_seed, found.changes, found.duration_samples) == (found.seed + first, changes, best[1])
    check(found, DataSet.open(directory.data), workers=1)


def test_where_members_do_not_wait_the_clock_is_that_of_the_weights(told: Callable[..., SearchDirectory]) -> None:
    directory = told(
        [
            birth(0, 0.001),
            birth(1, 0.002),
            exploit(1, 0, 200, 1, 300, 0.003),  # member 0's clock says 200, the weights have seen 300
            exploit(2, 1, 500, 0, 400, 0.004),  # 300 and then 200 -> 400 in member 0: 500
        ],
        rows({0: [9, 9, 5, 5], 1: [9, 9, 9, 9, 9, 1]}),
        (1, 600),
        "synchronous=false",
        "generations=6",
    )
    found = winner(directory)
    assert found.changes == {300: {LR: 0.003}, 500: {LR: 0.004}}
    assert found.duration_samples == 300 + 200 + 100
    check(found, DataSet.open(directory.data), workers=1)


def test_a_donor_that_was_lost_leaves_the_members_own_line(told: Callable[..., SearchDirectory]) -> None:
    directory = told(
        [
            birth(0, 0.001),
            birth(1, 0.002),
            exploit(1, 0, 200, 1, 200, 0.003),
            loaded(1, 0, 200, "0@200", "own"),
        ],
        rows({0: [9, 9, 1], 1: [5, 5, 5]}),
        (0, 300),
    )
    found = winner(directory)
    assert (found.init_seed, found.optim.lr, found.changes) == (found.seed, 0.001, {200: {LR: 0.003}})


def test_two_changes_at_one_sample_of_the_weights_are_one(told: Callable[..., SearchDirectory]) -> None:
    directory = told(
        [
            birth(0, 0.001, 4),
            birth(1, 0.002, 4),
            exploit(1, 0, 200, 1, 200, 0.001, 8),
            loaded(1, 0, 200, "0@200", "own"),
            exploit(2, 0, 200, 1, 200, 0.005, 8),
            loaded(2, 0, 200, "0@200", "own"),
        ],
        rows({0: [9, 9, 1], 1: [5, 5, 5]}),
        (0, 300),
    )
    assert winner(directory).changes == {200: {LR: 0.005, LATENT: 8}}


def test_a_winner_that_never_changed_is_its_birth(told: Callable[..., SearchDirectory]) -> None:
    directory = told([birth(0, 0.001), birth(1, 0.002)], rows({0: [0.1], 1: [0.3]}), (1, 100), "fitness.mode=max")
    found = winner(directory)
    assert (found.optim.lr, found.init_seed, found.changes) == (0.002, found.seed + 1, {})
    assert found.duration_samples == 100


def test_a_search_that_trained_nothing_has_no_winner(told: Callable[..., SearchDirectory]) -> None:
    directory = told([birth(0, 0.001)], [], None)
    with pytest.raises(RunError, match="has trained nothing yet; go on with --resume"):
        winner(directory)


def test_the_run_can_be_written_and_read(told: Callable[..., SearchDirectory], tmp_path: Path) -> None:
    directory = told(
        [birth(0, 0.001), birth(1, 0.002), exploit(1, 0, 100, 1, 100, 0.004, 16)],
        rows({0: [9, 1], 1: [5, 5]}),
        (0, 200),
    )
    path = tmp_path / "winner.yaml"
    path.write_text(winner(directory).to_yaml())
    assert read_config(path) == winner(directory)
    assert read_config(path).changes == {100: {LR: 0.004, LATENT: 16}}
