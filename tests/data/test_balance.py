"""Class balance: what a split's rows are drawn, against a slow reference in exact fractions."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter

from shoal.config import DataConfig, RunConfig, with_overrides
from shoal.data import DataSet, Stream
from shoal.data.balance import Balance, ClassShare, Quotas, apportion, class_weights, quotas_of
from shoal.data.order import Order
from shoal.data.write import write_dataset
from shoal.errors import ConfigError, DataError

Blocks = NDArray[np.int64]
NAMES = ["ant", "bee", "cat", "dog"]


def split(labels: Sequence[int], per_block: int, first: int = 0) -> Blocks:
    starts = np.arange(0, len(labels), per_block)
    return np.stack([first + starts, np.minimum(per_block, len(labels) - starts)], axis=1)


def balanced(
    labels: Sequence[int], per_block: int, window: int, balance: Balance, *, seed: int = 0, first: int = 0
) -> tuple[Order, list[int]]:
    """Return the order of a split with these labels, and the draws of each class."""
    found = np.array(labels, np.int32)
    rows = [int(n) for n in np.bincount(found, minlength=len(NAMES))]
    draws = apportion(len(labels), class_weights(balance, NAMES, rows))
    shares = [ClassShare(*values) for values in zip(NAMES, rows, draws, strict=True)]
    blocks = split(labels, per_block, first)
    return Order("fingerprint", seed, blocks, window, Quotas("test", shares, found, blocks)), draws


def reference(
    labels: Sequence[int], per_block: int, window: int, draws: Sequence[int], epoch: int, seed: int = 0, first: int = 0
) -> list[int]:
    """Return an epoch, row by row: each class' draws at equal steps along its rows, shuffled within a window."""

    def words(purpose: str, num: int) -> list[int]:
        name = f"shoal.order/1/fingerprint/{seed}/{epoch}/{purpose}"
        key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")
        return [int(word) for word in np.random.Philox(key=key).random_raw(num)]

    def shuffled(things: Sequence[int], purpose: str) -> list[int]:
        return [thing for _, thing in sorted(zip(words(purpose, len(things)), things, strict=True))]

    blocks = [list(range(at, min(at + per_block, len(labels)))) for at in range(0, len(labels), per_block)]
    rows = Counter(labels)
    at = {c: Fraction(word % max(rows[c], 1), max(rows[c], 1)) for c, word in enumerate(words("quotas", len(NAMES)))}
    order = shuffled(range(len(blocks)), "blocks")
    found: list[int] = []
    for number, start in enumerate(range(0, len(order), window)):
        inside: list[int] = []
        for block in order[start : start + window]:
            for row in blocks[block]:
                c = labels[row]
                after = at[c] + Fraction(draws[c], rows[c])
                inside += [first + row] * (math.floor(after) - math.floor(at[c]))
                at[c] = after
        found += [inside[place] for place in shuffled(range(len(inside)), f"rows/{number}")]
    return found


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], int, int, Balance]:
    labels = draw(st.lists(st.sampled_from([0, 0, 0, 0, 0, 0, 1, 2, 3]), min_size=1, max_size=120))
    there = sorted(set(labels))
    shares = st.integers(0, 20).map(lambda part: part / 10)
    named = draw(st.dictionaries(st.sampled_from(there), shares, min_size=1))
    mapping: Balance = {NAMES[number]: share for number, share in named.items()}
    total = sum(named.values())
    if not (total > 0 if len(named) == len(there) else total <= 1):
        mapping = {NAMES[there[0]]: 1.0}
    balance = draw(st.sampled_from([mapping, "uniform", "sqrt"]))
    return labels, draw(st.integers(1, 20)), draw(st.integers(1, 6)), balance


def exact_shares(labels: Sequence[int], balance: Balance) -> list[float]:
    """Return the share that each class shall have, by what the forms are said to mean."""
    rows = [labels.count(number) for number in range(len(NAMES))]
    if isinstance(balance, str):
        weights = [math.sqrt(n) if balance == "sqrt" else float(n > 0) for n in rows]
        return [weight / sum(weights) for weight in weights]
    given_shares = {NAMES.index(name): share for name, share in balance.items()}
    others = sum(n for number, n in enumerate(rows) if number not in given_shares)
    if not others:
        return [given_shares.get(number, 0.0) / sum(given_shares.values()) for number in range(len(NAMES))]
    rest = 1 - sum(given_shares.values())
    return [given_shares.get(number, rest * n / others) for number, n in enumerate(rows)]


def test_golden() -> None:
    # Pinned: a change here breaks the resume of every balanced run there is, and needs a new ORDER_VERSION.
    labels = [0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    order, draws = balanced(labels, 3, 2, "uniform", seed=42, first=100)
    assert draws == [7, 7, 6, 0]
    assert order.ids(0, 40).tolist() == GOLDEN
    assert [row for epoch in (0, 1) for row in reference(labels, 3, 2, draws, epoch, 42, 100)] == GOLDEN


GOLDEN = [
    101,
    103,
    104,
    104,
    104,
    114,
    114,
    114,
    112,
    114,
    115,
    107,
    107,
    107,
    107,
    106,
    107,
    107,
    118,
    110,
    107,
    108,
    101,
    107,
    107,
    107,
    107,
    107,
    104,
    114,
    113,
    114,
    104,
    114,
    105,
    104,
    114,
    116,
    119,
    110,
]


@given(cases(), st.integers(0, 3), st.integers(0, 2**63))
def test_the_order_is_that_of_the_reference(case: tuple[list[int], int, int, Balance], epoch: int, seed: int) -> None:
    labels, per_block, window, balance = case
    order, draws = balanced(labels, per_block, window, balance, seed=seed, first=7)
    found = order.ids(epoch * len(labels), (epoch + 1) * len(labels)).tolist()
    assert found == reference(labels, per_block, window, draws, epoch, seed, 7)


@given(cases(), st.integers(0, 3))
def test_an_epoch_draws_each_class_and_row_as_often_as_its_share_says(
    case: tuple[list[int], int, int, Balance], epoch: int
) -> None:
    labels, per_block, window, balance = case
    order, _ = balanced(labels, per_block, window, balance)
    num = len(labels)
    counts = np.bincount(order.ids(epoch * num, (epoch + 1) * num), minlength=num)
    assert counts.sum() == num
    for number, share in enumerate(exact_shares(labels, balance)):
        of_class = counts[np.array(labels) == number]
        drawn = int(of_class.sum())
        assert abs(drawn - share * num) < 1 + 1e-9  # by largest remainders: less than one draw off
        if len(of_class):
            assert {*of_class.tolist()} <= {drawn // len(of_class), -(-drawn // len(of_class))}


@given(cases(), st.data())
def test_any_range_is_a_part_of_the_whole(case: tuple[list[int], int, int, Balance], data: st.DataObject) -> None:
    order, _ = balanced(*case)
    end = 3 * len(case[0])
    whole = order.ids(0, end).tolist()
    start = data.draw(st.integers(0, end))
    stop = data.draw(st.integers(start, end))
    assert order.ids(start, stop).tolist() == whole[start:stop]
    fresh, _ = balanced(*case)
    assert fresh.ids(start, stop).tolist() == whole[start:stop]


@given(cases(), st.integers(7, 40))
def test_slices_join_to_the_whole_at_every_world_size(case: tuple[list[int], int, int, Balance], batch: int) -> None:
    order, _ = balanced(*case)
    whole = order.ids(0, 3 * batch).tolist()
    for size in range(1, 8):
        ranks = [balanced(*case)[0] for _ in range(size)]
        joined = [
            row
            for k in range(3)
            for rank, own in enumerate(ranks)
            for row in own.ids(k * batch + batch * rank // size, k * batch + batch * (rank + 1) // size).tolist()
        ]
        assert joined == whole


def test_counting_in_pieces_counts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [0, 1, 0, 0, 3, 0, 2] * 30
    whole = balanced(labels, 4, 5, "sqrt")[0].ids(0, 420).tolist()
    monkeypatch.setattr("shoal.data.balance.COUNTED_AT_ONCE", 30)  # seven blocks of 53 at a time
    assert balanced(labels, 4, 5, "sqrt")[0].ids(0, 420).tolist() == whole


def test_rows_of_a_class_take_turns() -> None:
    # 90 rows of which an epoch draws 50: over many epochs each is drawn as often as any other.
    labels = [0] * 90 + [1] * 10
    order, draws = balanced(labels, 7, 3, "uniform")
    assert draws == [50, 50, 0, 0]
    counts = np.bincount(order.ids(0, 100 * 900), minlength=100)
    assert counts.sum() == 900 * 100
    assert (counts[90:] == 900 * 5).all()
    assert abs(counts[:90] - 500).max() < 5 * math.sqrt(900 * 5 / 9 * 4 / 9)  # 5 standard deviations


def test_each_window_has_the_draws_of_its_rows() -> None:
    # One row in ten is rare: a window of 40 rows holds 4 of them, and of 200 draws 100 fall on 20 rare rows.
    order, _ = balanced(([0] * 9 + [1]) * 20, 10, 4, "uniform")
    for window in range(5):
        ids = order.ids(window * 40, (window + 1) * 40)
        assert int((ids % 10 == 9).sum()) == 20
        assert len({*(ids // 10).tolist()}) == 4


# --- what each form means --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("balance", "draws"),
    [
        ("uniform", [25, 25, 25, 25]),
        ("sqrt", [56, 19, 19, 6]),  # roots 9, 3, 3, 1 of 16: 56.25, 18.75, 18.75, 6.25
        ({"dog": 0.1}, [74, 8, 8, 10]),  # 90 as 81 : 9 : 9 of 99: 73.6, 8.2, 8.2
        ({"dog": 0.0}, [82, 9, 9, 0]),
        ({"bee": 0.5, "cat": 0.5}, [0, 50, 50, 0]),
        ({"1": 0.5, "2": 0.5}, [0, 50, 50, 0]),
        ({"ant": 3.0, "bee": 1.0, "cat": 1.0, "dog": 5.0}, [30, 10, 10, 50]),  # all are named: ratios
        ({"ant": 0.1, "bee": 0.2, "cat": 0.7}, [10, 20, 70, 0]),  # decimals that sum to 1 leave nothing over
    ],
)
def test_what_the_forms_mean(balance: Balance, draws: list[int]) -> None:
    rows = [81, 9, 9, 1]
    assert apportion(100, class_weights(balance, NAMES, rows)) == draws


def test_numbers_that_are_names_are_names() -> None:
    assert class_weights({"1": 1.0}, ["1", "0"], [5, 5]) == [1, 0]


@pytest.mark.parametrize(
    ("balance", "error", "message"),
    [
        ({"caat": 1.0}, ConfigError, r"unknown class 'caat' \(did you mean 'cat'\?\); known: ant, bee, cat, dog"),
        ({"4": 1.0}, ConfigError, "unknown class '4'; known: ant"),
        ({"cat": 0.5, "2": 0.5}, ConfigError, "names class 'cat' twice"),
        (
            {"cat": 0.7, "ant": 0.7},
            ConfigError,
            r"sum to 1.4 and leave out 1 classes \(bee\); name every class, or use",
        ),
        ({"ant": 0.0, "bee": 0.0, "cat": 0.0}, ConfigError, "every class has share 0"),
        ({"dog": 0.5}, DataError, r"data.balance.dog=0.5: the split has no image of it; set it to 0"),
    ],
)
def test_refused_shares(balance: Balance, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        class_weights(balance, NAMES, [8, 1, 1, 0])


@pytest.mark.parametrize("override", ["uniform", "sqrt", "none", "{ant: 0.5, dog: 0.5}", "{0: 1, dog: 1e-3}"])
def test_it_survives_the_configuration_file(tiny: Callable[..., RunConfig], override: str) -> None:
    config = tiny("autoencoder", f"data.balance={override}")
    assert config.data.balance == {"{0: 1, dog: 1e-3}": {"0": 1.0, "dog": 0.001}}.get(
        override, yaml.safe_load(override)
    )
    assert DataConfig(**yaml.safe_load(config.to_yaml())["data"]) == config.data
    named = with_overrides(tiny(), ["data.balance.ant=0.5", "data.balance.dog=0.5"])
    assert named.data.balance == {"ant": 0.5, "dog": 0.5}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "uniformly",
            r"data.balance: 'uniformly' \(did you mean 'uniform'\?\); use none, uniform, sqrt, or {CLASS: SHARE}",
        ),
        ("null", "data.balance: None is no balance"),
        ("{}", "data.balance: {} is no balance"),
        ("3", "data.balance: 3 is no balance"),
        ("true", "data.balance: true is a truth value"),
        ("{yes: 0.5}", "data.balance: True is no class name; quote it"),
        ("{cat: -0.5}", "data.balance: class cat has share -0.5; use a number of at least 0"),
        ("{cat: .inf}", "class cat has share inf"),
        ("{cat: often}", "class cat has share 'often'"),
        ("{1: 0.5, '1': 0.5}", "class 1 has two shares"),
    ],
)
def test_refused_settings(tiny: Callable[..., RunConfig], override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny("autoencoder", f"data.balance={override}")


# --- a data set ------------------------------------------------------------------------------------------------------


@pytest.fixture
def rare(tmp_path: Path) -> DataSet:
    """200 images of 1 pixel in blocks of 16, of which every 50th is of class 'dog', none 'cat'; then 5 cats."""
    labels = np.where(np.arange(200) % 50 == 13, 3, np.arange(200) % 2)
    splits = {
        "train": [(np.arange(200, dtype=np.uint8).reshape(-1, 1, 1, 1), labels)],
        "test": [(np.zeros((5, 1, 1, 1), np.uint8), np.full(5, 2))],
    }
    write_dataset(tmp_path / "rare", splits, shape=(1, 1, 1), class_names=NAMES, source="test", rows_per_block=16)
    return DataSet.open(tmp_path / "rare")


def balanced_stream(data: DataSet, balance: Balance, rows: slice = slice(0, 20), part: str = "train") -> Stream:
    return Stream(data, split=part, batch=20, seed=3, rows=rows, balance=balance, shuffle_window_blocks=3)


def test_a_stream_delivers_the_shares(rare: DataSet) -> None:
    with balanced_stream(rare, "uniform") as batches:
        got = [next(batches) for _ in range(10)]
    labels = np.concatenate([batch.labels.numpy() for batch in got if batch.labels is not None])
    assert np.bincount(labels, minlength=4).tolist() == [67, 67, 0, 66]
    for batch in got:
        assert batch.images[:, 0, 0, 0].tolist() == batch.ids.tolist()
        assert batch.labels is not None
        assert ((batch.labels == 3).numpy() == (batch.ids % 50 == 13)).all()


def test_a_part_of_a_split_is_balanced_by_its_own_rows(rare: DataSet) -> None:
    quotas = quotas_of(rare, "train[60:100]", "uniform")
    assert quotas is not None
    assert [(share.rows, share.draws) for share in quotas.shares] == [(20, 14), (19, 13), (0, 0), (1, 13)]
    with balanced_stream(rare, "uniform", part="train[60:100]") as batches:
        ids = np.concatenate([next(batches).ids, next(batches).ids])
    assert ids.min() >= 60
    assert ids.max() < 100
    assert int((ids == 63).sum()) == 13


def test_the_state_says_which_balance_and_another_is_refused(rare: DataSet) -> None:
    states: dict[str, dict[str, object]] = {}
    for name, balance in {"none": "none", "uniform": "uniform", "a": {"dog": 0.5}, "b": {"dog": 0.25}}.items():
        with balanced_stream(rare, TypeAdapter[Balance](Balance).validate_python(balance)) as batches:
            states[name] = batches.state()
    assert "balance" not in states["none"]  # readable by who knows of no balance
    assert states["uniform"]["balance"] == "uniform"
    assert states["a"]["balance"] != states["b"]["balance"]
    Stream.resume(rare, states["a"], rows=slice(0, 20), balance={"3": 0.5}).close()  # other words for the same draws
    for state, balance in (("none", "uniform"), ("uniform", "none"), ("uniform", "sqrt"), ("a", {"dog": 0.25})):
        other = TypeAdapter[Balance](Balance).validate_python(balance)
        with pytest.raises(DataError, match=r"written with data.balance '.*', but this run's is '.*'"):
            Stream.resume(rare, states[state], rows=slice(0, 20), balance=other)


def test_rows_without_a_label_refuse_a_balance(dataset: DataSet) -> None:
    with pytest.raises(
        DataError, match=r"of the 150 images of split 'train' in .* have no label, and data.balance needs"
    ):
        quotas_of(dataset, "train", "uniform")


def test_a_data_set_without_labels_refuses_a_balance(tmp_path: Path) -> None:
    splits = {"train": [(np.zeros((8, 1, 1, 1), np.uint8), None)]}
    write_dataset(tmp_path / "bare", splits, shape=(1, 1, 1), class_names=None, source="test")
    assert quotas_of(DataSet.open(tmp_path / "bare"), "train", "none") is None
    with pytest.raises(DataError, match="8 of the 8 images"):
        quotas_of(DataSet.open(tmp_path / "bare"), "train", "sqrt")
