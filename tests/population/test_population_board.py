"""What TensorBoard shows of a whole population, read back with its own reader."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shoal_ray.population.board import QUANTILES, PopulationBoard, by_fitness, changes, table, tell
from shoal_ray.population.directory import SearchDirectory
from shoal_ray.population.journal import Journal

MakeSearch = Callable[..., SearchDirectory]
Told = Callable[..., dict[str, Any]]

EXPLOIT = {
    "event": "exploit",
    "seq": 1,
    "member": 3,
    "samples": 1000,
    "donor": 0,
    "donor_samples": 1000,
    "before": 0.75,
    "after": 0.125,
    "gap": 3.14,
}
MUTATION = {
    "event": "mutation",
    "seq": 1,
    "member": 3,
    "samples": 1000,
    "old": {"optim.lr": 0.001, "nets.latent": 8},
    "new": {"optim.lr": 0.00125, "nets.latent": 16},
    "how": {"optim.lr": "x 1.25", "nets.latent": ""},
}
MUTATED = "optim.lr 0.001 -> 0.00125 (x 1.25), nets.latent 8 -> 16"


def shown(directory: SearchDirectory) -> EventAccumulator:
    sizes = {"scalars": 0, "tensors": 0, "histograms": 0}
    found = EventAccumulator(str(directory.path / "tensorboard"), size_guidance=sizes)
    found.Reload()
    return found


def text(found: EventAccumulator, tag: str) -> list[tuple[int, str]]:
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in found.Tensors(f"{tag}/text_summary")]


def tell_of(directory: SearchDirectory, *rows: dict[str, Any]) -> None:
    for path, wanted in ((directory.population, False), (directory.lineage, True)):
        with closing(Journal(path)) as journal:
            for row in rows:
                if ("event" in row) == wanted:
                    journal.append(row)


@pytest.fixture
def graded(told: Told) -> Callable[[int, int, float | None], dict[str, Any]]:
    """Return ``graded(member, generation, fitness)``: a row of the population's journal."""

    def row(member: int, generation: int, fitness: float | None) -> dict[str, Any]:
        latent = [4, 8, 16, 16][member]
        return {**told(member, generation, fitness, lr=0.001 * (1 + member), latent=latent), "fitness": fitness}

    return row


def test_each_generation_is_shown_once_also_where_a_search_goes_on(
    make_search: MakeSearch, graded: Callable[..., dict[str, Any]]
) -> None:
    directory = make_search()
    first = [graded(member, 1, 0.4 - 0.1 * member) for member in range(4)]
    board = PopulationBoard(directory)
    board.refresh()
    tell_of(directory, *first[:3])
    board.refresh()
    board.refresh()
    assert "fitness/best" not in shown(directory).Tags()["scalars"]  # the fourth member is still at it
    tell_of(directory, first[3], *(graded(member, 2, 0.2) for member in (0, 1)))
    board.refresh()
    assert [(event.step, event.value) for event in shown(directory).Scalars("fitness/best")] == [
        (100, pytest.approx(0.1))
    ]
    del board  # killed

    with closing(PopulationBoard(directory)) as board:
        board.refresh()
        tell_of(directory, EXPLOIT | {"samples": 200}, MUTATION | {"samples": 200}, graded(2, 2, 0.3))
        board.refresh()
        tell_of(directory, {"event": "death", "member": 3, "samples": 200, "reason": "lost"})
        board.refresh()
        tell_of(directory, graded(0, 3, 0.1))
        board.refresh()
    found = shown(directory)
    for tag in ("fitness/best", "fitness/worst", "fitness/median", "best/optim.lr", "best/nets.latent"):
        assert [event.step for event in found.Scalars(tag)] == [100, 200, 300], tag
    assert [event.step for event in found.Histograms("hyperparameters/nets.latent")] == [100, 200, 300]
    assert [event.value for event in found.Scalars("population/members")] == [4, 3, 1]
    assert [step for step, _ in text(found, "population")] == [100, 200, 300]
    assert [step for step, _ in text(found, "search")] == [0]
    assert [(step, line[:40]) for step, line in text(found, "exploits")] == [
        (200, "member 3 takes member 0's weights at 200")
    ]


def test_quantiles_the_best_values_and_the_table_are_those_of_the_population(
    make_search: MakeSearch, graded: Callable[..., dict[str, Any]]
) -> None:
    directory = make_search("population=6")
    with closing(PopulationBoard(directory)):
        tell_of(directory, *(graded(member, 1, one) for member, one in enumerate([0.4, 0.1, 0.3, None])))
        tell_of(directory, *({**graded(0, 1, one), "member": member} for member, one in ((4, 0.2), (5, 0.5))))
    found = shown(directory)
    values = {tag: found.Scalars(f"fitness/{tag}")[0].value for tag in QUANTILES}
    assert values == pytest.approx(
        {"best": 0.1, "upper_quartile": 0.2, "median": 0.3, "lower_quartile": 0.4, "worst": 0.5}, abs=1e-6
    )
    assert found.Scalars("best/optim.lr")[0].value == pytest.approx(0.002)
    histogram = found.Histograms("hyperparameters/nets.latent")[0].histogram_value
    assert (histogram.min, histogram.max, histogram.num, histogram.sum) == (4, 16, 6, 4 + 8 + 16 + 16 + 4 + 4)
    assert text(found, "population")[0][1].splitlines()[2:4] == [
        "| 1 | 0.1 | 0.002 | 8 | 50 |",
        "| 4 | 0.2 | 0.001 | 4 | 50 |",
    ]


@pytest.mark.parametrize(("mode", "order"), [("min", [1, 0, 2]), ("max", [0, 1, 2])])
def test_rows_are_sorted_by_fitness_and_those_without_one_are_last(mode: str, order: list[int]) -> None:
    rows = [{"member": member, "fitness": one} for member, one in enumerate([0.5, -0.5, None])]
    assert [row["member"] for row in by_fitness(reversed(rows), mode)] == order


def test_the_table_says_who_has_diverged(graded: Callable[..., dict[str, Any]]) -> None:
    assert table([graded(2, 1, 0.123456789), graded(1, 1, None)], ["optim.lr", "nets.latent"]).splitlines() == [
        "| member | fitness | optim.lr | nets.latent | samples/s |",
        "|---|---|---|---|---|",
        "| 2 | 0.12346 | 0.003 | 16 | 50 |",
        "| 1 | diverged | 0.002 | 8 | 50 |",
    ]


def test_an_exploit_is_told_in_a_sentence() -> None:
    told = "member 3 takes member 0's weights at 1,000 (0.75 -> 0.125, 3.1 standard errors)"
    assert tell(EXPLOIT, [EXPLOIT, MUTATION]) == f"{told}: {MUTATED}"
    assert tell(EXPLOIT, [EXPLOIT]) == tell(EXPLOIT, [MUTATION | {"new": {}}]) == told
    lost = EXPLOIT | {"gap": None, "before": None}
    assert tell(lost, [MUTATION | {"seq": 2}]) == "member 3 takes member 0's weights at 1,000 (diverged -> 0.125)"
    assert changes(MUTATION) == MUTATED
