from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shoal.data.order import ORDER_VERSION, Order, stable_argsort


def blocks_of(num_rows: int, rows_per_block: int, first: int = 0) -> NDArray[np.int64]:
    starts = np.arange(0, num_rows, rows_per_block)
    return np.stack([first + starts, np.minimum(rows_per_block, num_rows - starts)], axis=1)


orders = st.builds(
    lambda num, per, window, seed: Order("fingerprint", seed, blocks_of(num, per), window),
    st.integers(1, 200),
    st.integers(1, 20),
    st.integers(1, 6),
    st.integers(0, 2**31),
)


def test_golden() -> None:
    # Pinned: a change here breaks the resume of every run there is, and needs a new ORDER_VERSION.
    order = Order("0123456789abcdef", 42, blocks_of(20, 3, first=100), window_blocks=2)
    assert ORDER_VERSION == 1
    assert order.ids(0, 45).tolist() == [
        105,
        115,
        117,
        116,
        103,
        104,
        101,
        111,
        102,
        100,
        110,
        109,
        108,
        107,
        112,
        114,
        113,
        106,
        118,
        119,
        103,
        104,
        109,
        105,
        110,
        111,
        118,
        113,
        119,
        112,
        114,
        107,
        108,
        116,
        106,
        115,
        117,
        101,
        100,
        102,
        113,
        112,
        114,
        108,
        106,
    ]


def test_golden_of_a_full_size_epoch() -> None:
    order = Order("f" * 64, 0, blocks_of(60_000, 1337))
    assert order.ids(123_456_789, 123_456_797).tolist() == [51003, 17307, 52988, 53954, 59370, 28181, 56774, 48595]


@given(orders, st.integers(0, 5))
def test_an_epoch_holds_each_row_exactly_once(order: Order, epoch: int) -> None:
    ids = order.ids(epoch * order.num_rows, (epoch + 1) * order.num_rows)
    assert sorted(ids.tolist()) == list(range(order.num_rows))


@given(orders, st.data())
def test_any_range_is_a_part_of_the_whole(order: Order, data: st.DataObject) -> None:
    end = 3 * order.num_rows
    whole = order.ids(0, end)
    start = data.draw(st.integers(0, end))
    stop = data.draw(st.integers(start, end))
    assert order.ids(start, stop).tolist() == whole[start:stop].tolist()
    fresh = Order(order.fingerprint, order.seed, np.stack([order._first, order._rows], 1), order.window_blocks)
    assert fresh.ids(start, stop).tolist() == whole[start:stop].tolist()


@given(orders, st.integers(1, 50))
def test_batches_over_epochs_join_to_the_whole(order: Order, batch: int) -> None:
    joined = np.concatenate([order.ids(k * batch, (k + 1) * batch) for k in range(5)])
    assert joined.tolist() == order.ids(0, 5 * batch).tolist()


def test_epochs_seeds_and_fingerprints_differ() -> None:
    blocks = blocks_of(500, 10)
    order = Order("a", 0, blocks)
    first = order.ids(0, 500).tolist()
    assert first != list(range(500))
    for other in (order.ids(500, 1000), Order("a", 1, blocks).ids(0, 500), Order("b", 0, blocks).ids(0, 500)):
        assert other.tolist() != first


def test_a_window_mixes_its_blocks_only() -> None:
    order = Order("a", 0, blocks_of(1000, 10), window_blocks=4)
    for window in range(25):
        ids = order.ids(window * 40, (window + 1) * 40)
        assert len(set((ids // 10).tolist())) == 4
        assert (np.diff(ids) != 1).any()


def test_permutations_are_near_uniform() -> None:
    order = Order("a", 0, blocks_of(4, 1), window_blocks=4)
    counts = np.zeros((4, 4), int)
    for epoch in range(2000):
        counts[np.arange(4), order.ids(4 * epoch, 4 * epoch + 4)] += 1
    assert abs(counts - 500).max() < 100  # 5 standard deviations


def test_caches_hold_one_window_whatever_the_position() -> None:
    order = Order("a", 0, blocks_of(10_000, 10), window_blocks=4)
    assert order.ids(10**15, 10**15 + 1).shape == (1,)
    assert len(order._window[1]) == 40


@given(orders, st.integers(7, 60), st.integers(0, 10**9))
def test_slices_join_to_the_global_batch_at_every_world_size(order: Order, batch: int, index: int) -> None:
    start = index * batch
    whole = order.ids(start, start + batch).tolist()
    for size in range(1, 8):
        cuts = [start + batch * rank // size for rank in range(size + 1)]
        assert [row for lo, hi in pairwise(cuts) for row in order.ids(lo, hi).tolist()] == whole


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=300), st.integers(0, 63))
def test_the_sort_is_the_stable_one(words: list[int], shift: int) -> None:
    array = np.array(words, np.uint64) >> np.uint64(shift)  # the further, the more are alike
    np.testing.assert_array_equal(stable_argsort(array), np.argsort(array, kind="stable"))
