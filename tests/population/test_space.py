import math
from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ConfigError
from shoal_ray.population.dimension import Dimension
from shoal_ray.population.kinds import read_dimension
from shoal_ray.population.space import Space

ALL: dict[str, Any] = {
    "optim.lr": {"log_uniform": [1e-4, 1e-2], "perturb": 1.25, "resample": 0.1},
    "objective.beta": {"uniform": [0.5, 4.0], "perturb": 0.1},
    "objective.critic_steps": {"int": [1, 8], "perturb": 3},
    "optim.schedule": {"choice": ["constant", "cosine", None, [1, 2]], "resample": 0.2},
    "nets.latent": {"ladder": [4, 8, 16, 32, 64]},
}


def dimension(**values: Any) -> Dimension:
    return read_dimension("a.key", values)


def ranges(lowest: float, highest: float) -> st.SearchStrategy[list[float]]:
    numbers = st.floats(lowest, highest, allow_subnormal=False)
    return st.lists(numbers, min_size=2, max_size=2, unique=True).map(sorted)


shares = st.floats(0, 1)
dimensions = st.one_of(
    st.builds(
        lambda bounds, perturb, resample: dimension(log_uniform=bounds, perturb=perturb, resample=resample),
        ranges(1e-300, 1e300),
        st.floats(1, 1e300, exclude_min=True),
        shares,
    ),
    st.builds(
        lambda bounds, perturb, resample: dimension(uniform=bounds, perturb=perturb, resample=resample),
        ranges(-1e300, 1e300),
        st.floats(0, 1, exclude_min=True),
        shares,
    ),
    st.builds(
        lambda low, width, perturb, resample: dimension(int=[low, low + width], perturb=perturb, resample=resample),
        st.integers(-(10**6), 10**6),
        st.integers(1, 10**6),
        st.integers(1, 10**7),
        shares,
    ),
    st.builds(
        lambda values, resample: dimension(choice=values, resample=resample),
        st.lists(st.text(st.characters(categories=["L"])), min_size=2, unique=True),
        shares,
    ),
    st.builds(
        lambda values, resample: dimension(ladder=sorted(values), resample=resample),
        st.lists(st.integers(-(10**6), 10**6), min_size=2, unique=True),
        shares,
    ),
)
anything = st.one_of(st.floats(), st.integers(), st.text(), st.none(), st.booleans(), st.lists(st.integers()))


@given(dimensions, anything, st.integers(0, 2**32))
def test_a_move_stays_in_the_space_from_any_start(of: Dimension, start: object, seed: int) -> None:
    rng = Random(seed)
    value, done = of.explore(start, rng)
    assert of.contains(value)
    assert done
    for _ in range(3):
        value, _ = of.explore(value, rng)
        assert of.contains(value)


@given(dimensions, st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_quantiles_are_in_the_space_and_ascend(of: Dimension, one: float, two: float) -> None:
    below, above = (of.quantile(u) for u in sorted((one, two)))
    assert of.contains(below)
    assert of.contains(above)
    if of.kind != "choice":
        # Of numbers 600 orders of magnitude apart, the last digits of a logarithm may go either way.
        assert below <= above or math.isclose(below, above)


@given(dimensions)
def test_what_is_checked_is_in_the_space(of: Dimension) -> None:
    assert all(of.contains(value) for value in of.values_to_check())


@given(dimensions)
def test_a_dimension_comes_back_equal_from_its_plain_form(of: Dimension) -> None:
    assert dimension(**of.plain()) == of


def test_quantiles_by_hand() -> None:
    log = dimension(log_uniform=[1e-4, 1e-2])
    assert log.quantile(0) == pytest.approx(1e-4)
    assert log.quantile(0.5) == pytest.approx(1e-3)
    assert log.quantile(0.25) == pytest.approx(10**-3.5)
    assert dimension(uniform=[0.5, 4.5]).quantile(0.25) == 1.5
    assert [dimension(int=[1, 4]).quantile(u) for u in (0, 0.24, 0.25, 0.5, 0.75, 0.99)] == [1, 1, 2, 3, 4, 4]
    assert [dimension(choice=["a", "b"]).quantile(u) for u in (0, 0.49, 0.5, 0.99)] == ["a", "a", "b", "b"]
    assert [dimension(ladder=[4, 8, 32]).quantile(u) for u in (0, 0.34, 0.99)] == [4, 8, 32]


def reached(of: Dimension, start: object, times: int = 2000) -> dict[tuple[Any, str], float]:
    rng = Random(0)
    counts = Counter(of.explore(start, rng) for _ in range(times))
    return {outcome: count / times for outcome, count in counts.items()}


ABOUT = 0.05
"""Four standard deviations of a share of 2000 draws."""


@pytest.mark.parametrize(
    ("of", "start", "expected"),
    [
        ({"log_uniform": [1, 100], "perturb": 2}, 8, {(16, "x 2"): 0.5, (4, "/ 2"): 0.5}),
        ({"log_uniform": [1, 100], "perturb": 2}, 80, {(100, "x 2, held at 100"): 0.5, (40, "/ 2"): 0.5}),
        ({"log_uniform": [1, 100], "perturb": 2}, 500, {(100, "x 2, held at 100"): 0.5, (50, "/ 2"): 0.5}),
        ({"uniform": [0, 8], "perturb": 0.25}, 3, {(5, "+ 2"): 0.5, (1, "- 2"): 0.5}),
        ({"uniform": [0, 8], "perturb": 0.25}, 1, {(3, "+ 2"): 0.5, (0, "- 2, held at 0"): 0.5}),
        ({"int": [1, 8]}, 4, {(5, "+ 1"): 0.5, (3, "- 1"): 0.5}),
        ({"int": [1, 8], "perturb": 2}, 4, {(5, "+ 1"): 0.25, (3, "- 1"): 0.25, (6, "+ 2"): 0.25, (2, "- 2"): 0.25}),
        ({"int": [1, 8]}, 8, {(8, "+ 1, held at 8"): 0.5, (7, "- 1"): 0.5}),
        ({"choice": ["a", "b"], "resample": 0}, "b", {("b", "stays"): 1}),
        ({"choice": [1, 2], "resample": 0.4}, 2, {(2, "stays"): 0.6, (1, "resampled"): 0.2, (2, "resampled"): 0.2}),
        ({"choice": ["a", "b"], "resample": 0}, "c", {("a", "resampled"): 0.5, ("b", "resampled"): 0.5}),
        ({"ladder": [4, 8, 32]}, 8, {(4, "one step down"): 1 / 3, (8, "stays"): 1 / 3, (32, "one step up"): 1 / 3}),
        ({"ladder": [4, 8, 32]}, 32, {(8, "one step down"): 1 / 3, (32, "stays"): 2 / 3}),
        ({"ladder": [4, 8, 32]}, 7, {(4, "one step down"): 1 / 3, (8, "stays"): 1 / 3, (32, "one step up"): 1 / 3}),
        ({"ladder": [4, 8], "resample": 1}, 4, {(4, "resampled"): 0.5, (8, "resampled"): 0.5}),
    ],
)  # fmt: skip
def test_moves_are_as_likely_as_said(of: dict[str, Any], start: object, expected: dict[Any, float]) -> None:
    found = reached(dimension(**of), start)
    assert found.keys() == expected.keys()
    for outcome, share in expected.items():
        assert found[outcome] == pytest.approx(share, abs=ABOUT)


def test_defaults_are_those_of_the_manual() -> None:
    assert [read_dimension(key, {kind: values}).plain() for key, kind, values in (
        ("a", "log_uniform", [1, 2]),
        ("b", "uniform", [1, 2]),
        ("c", "int", [1, 2]),
        ("d", "choice", [1, 2]),
        ("e", "ladder", [1, 2]),
    )] == [
        {"log_uniform": [1, 2], "perturb": 1.25, "resample": 0},
        {"uniform": [1, 2], "perturb": 0.1, "resample": 0},
        {"int": [1, 2], "perturb": 1, "resample": 0},
        {"choice": [1, 2], "resample": 0.25},
        {"ladder": [1, 2], "resample": 0},
    ]  # fmt: skip


def test_a_choice_knows_a_truth_value_from_a_number() -> None:
    of = dimension(choice=[1, "two", [3, 4.0]])
    assert [of.contains(value) for value in (1, 1.0, True, "1", "two", [3, 4], (3.0, 4))] == [
        True, True, False, False, True, True, True,
    ]  # fmt: skip


def test_numbers_may_be_written_as_people_write_them() -> None:
    assert dimension(log_uniform=["1e-4", "1e-2"]) == dimension(log_uniform=[1e-4, 1e-2])
    assert dimension(choice=["1e-4", "2E-3"]).values_to_check() == [1e-4, 2e-3]
    ladder = dimension(ladder=["4", 8.0, "1e3"]).values_to_check()
    assert ladder == [4, 8, 1000]
    assert [type(size) for size in ladder] == [int, int, int]
    assert dimension(int=["1", "1e3"]).values_to_check() == [1, 1000]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"log_uniform": [0, 1]}, r"^space\.a\.key: log_uniform begins at 0, which has no logarithm; begin above 0$"),
        ({"log_uniform": [-1, 1]}, r"begins at -1"),
        ({"log_uniform": [2, 1]}, r"^space\.a\.key: log_uniform=\[2, 1\] holds no range"),
        ({"uniform": [1, 1]}, r"uniform=\[1, 1\] holds no range"),
        ({"int": [3, 3]}, r"int=\[3, 3\] holds no range"),
        ({"uniform": [1, math.inf]}, r"^space\.a\.key\.uniform\.1=inf: should be a finite number"),
        ({"log_uniform": [1, math.nan]}, r"log_uniform\.1=nan: should be a finite number"),
        ({"uniform": [-1.7e308, 1.7e308]}, r"too wide to draw from"),
        ({"uniform": [1]}, r"space\.a\.key\.uniform\.1 is missing"),
        ({"uniform": []}, r"space\.a\.key\.uniform\.0 is missing"),
        ({"uniform": 3}, r"uniform=3: must be a list"),
        ({"uniform": [True, 3]}, r"uniform\.0: true is a truth value"),
        ({"uniform": ["low", 3]}, r"uniform\.0='low': should be a valid number"),
        ({"int": [1, 2.5]}, r"int\.1=2\.5: should be a valid integer"),
        ({"ladder": [4, 4]}, r"ladder=\[4, 4\] does not ascend"),
        ({"ladder": [8, 4]}, r"ladder=\[8, 4\] does not ascend"),
        ({"ladder": [4]}, r"ladder=\[4\] leaves nothing to search"),
        ({"ladder": []}, r"ladder=\[\] leaves nothing to search"),
        ({"ladder": [4, math.inf]}, r"ladder\.1=inf: should be a finite number"),
        ({"choice": ["a"]}, r"choice=\[a\] leaves nothing to search"),
        ({"choice": ["a", "a"]}, r"choice=\[a, a\] lists a value twice"),
        ({"choice": [1, 1.0]}, r"lists a value twice"),
        ({"choice": [{"lr": 1}, 2]}, r"choice\.0: \{'lr': 1\} is a dict"),
        ({"choice": [math.nan, 2]}, r"choice\.0: nan is not finite"),
        ({"choice": "ab"}, r"choice='ab': must be a list"),
        ({"log_uniform": [1, 2], "perturb": 1}, r"^space\.a\.key\.perturb=1: should be greater than 1$"),
        ({"uniform": [1, 2], "perturb": 1.5}, r"perturb=1\.5: should be less than or equal to 1"),
        ({"int": [1, 2], "perturb": 0}, r"perturb=0: should be greater than 0"),
        ({"int": [1, 2], "resample": 1.1}, r"^space\.a\.key\.resample=1\.1: should be less than or equal to 1"),
        ({"int": [1, 2], "resample": -0.1}, r"resample=-0\.1: should be greater than or equal to 0"),
        ({"int": [1, 2], "resample": math.nan}, r"resample=nan: should be "),
        ({"choice": [1, 2], "perturb": 2}, r"unknown key space\.a\.key\.perturb; a choice has choice, resample$"),
        ({"int": [1, 2], "pertrub": 2}, r"unknown key space\.a\.key\.pertrub \(did you mean 'perturb'\?\)"),
        ({"int": [1, 2], "uniform": [1, 2]}, r"^space\.a\.key is of two kinds, int and uniform; keep one$"),
        ({"lgo_uniform": [1, 2]}, r"^space\.a\.key: unknown kind lgo_uniform \(did you mean 'log_uniform'\?\)"),
        ({"resample": 0.1}, r"^space\.a\.key: no kind; known: log_uniform, uniform, int, choice, ladder$"),
    ],
)  # fmt: skip
def test_what_is_no_dimension_is_refused_by_its_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dimension(**values)


@pytest.mark.parametrize("values", [{}, None, [], "optim.lr", 3])
def test_an_empty_space_is_refused(values: object) -> None:
    with pytest.raises(ConfigError, match="space is empty"):
        Space.read(values)


def test_all_bad_keys_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Space.read({"a": 3, "b": {"int": [1, 2]}, "c": {"int": [2, 1]}})
    assert [line.split(":")[0].split("=")[0] for line in str(caught.value).splitlines()] == ["space.a", "space.c"]


@given(st.integers(1, 60), st.integers(0, 2**63 - 1))
def test_every_stratum_is_used_once(num: int, seed: int) -> None:
    """Each kind is undone by its own formula: where a value lies among all, as a share."""
    members = Space.read({"a": {"log_uniform": [1e-4, 1e-2]}, "b": {"uniform": [-3, 5]}}).sample(num, seed)
    shares = {
        "a": [math.log10(values["a"] / 1e-4) / 2 for values in members],
        "b": [(values["b"] + 3) / 8 for values in members],
    }
    for of_key in shares.values():
        for stratum, share in enumerate(sorted(of_key)):
            assert stratum - 1e-9 <= share * num <= stratum + 1 + 1e-9


@given(st.integers(1, 12), st.integers(0, 2**63 - 1))
def test_listed_values_are_drawn_equally_often(times: int, seed: int) -> None:
    members = Space.read({"a": {"ladder": [4, 8, 16]}, "b": {"int": [1, 3]}}).sample(3 * times, seed)
    assert Counter(values["a"] for values in members) == {4: times, 8: times, 16: times}
    assert Counter(values["b"] for values in members) == {1: times, 2: times, 3: times}


def test_the_first_population_is_a_function_of_seed_and_key() -> None:
    space = Space.read(ALL)
    backwards = Space.read(dict(reversed(ALL.items())))
    fewer = Space.read({key: ALL[key] for key in ("nets.latent", "optim.lr")})
    assert space.sample(8, 0) == space.sample(8, 0) == backwards.sample(8, 0)
    assert space.sample(8, 0) != space.sample(8, 1)
    assert [{key: values[key] for key in fewer} for values in space.sample(8, 0)] == fewer.sample(8, 0)


def test_keys_are_shuffled_apart() -> None:
    space = Space.read({"a": {"uniform": [0, 1]}, "b": {"uniform": [0, 1]}})
    orders = [[int(values[key] * 8) for values in space.sample(8, 0)] for key in ("a", "b")]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(8))


@given(st.integers(0, 2**32), st.permutations(list(ALL)), st.permutations(list(ALL)))
def test_a_move_depends_on_the_generator_and_on_no_order(seed: int, keys: list[str], others: list[str]) -> None:
    space, shuffled = Space.read(ALL), Space.read({key: ALL[key] for key in keys})
    values = space.sample(1, seed)[0]
    moved, done = space.explore(values, Random(seed))
    assert (moved, done) == shuffled.explore({key: values[key] for key in others}, Random(seed))
    assert list(moved) == list(done) == list(ALL)
    assert all(space[key].contains(value) for key, value in moved.items())


def test_a_space_comes_back_equal_from_its_plain_form() -> None:
    space = Space.read(ALL)
    assert Space.read(space.plain()) == space
    assert space.plain()["nets.latent"] == {"ladder": [4, 8, 16, 32, 64], "resample": 0}
    assert list(space.plain()["optim.lr"]) == ["log_uniform", "perturb", "resample"]


def test_tables_say_what_and_how() -> None:
    space = Space.read(ALL)
    assert [(of.describe(), of.rule()) for of in space.values()] == [
        ("log-uniform from 0.0001 to 0.01", "x or / 1.25; 10% afresh"),
        ("uniform from 0.5 to 4", "+ or - 0.35"),
        ("whole numbers from 1 to 8", "+ or - 1 to 3"),
        ("one of constant, cosine, null, [1, 2]", "20% afresh"),
        ("sizes 4, 8, 16, 32, 64", "one step up, down, or none"),
    ]
