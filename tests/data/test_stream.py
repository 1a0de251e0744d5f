import json
import threading
from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shoal.data import DataSet, RawBatch, Stream, check_state
from shoal.errors import DataError


def stream(dataset: DataSet, rows: slice = slice(None), position: int = 0, batch: int = 20) -> Stream:
    return Stream(dataset, split="train", batch=batch, seed=7, rows=rows, position=position, shuffle_window_blocks=3)


def test_batches_are_the_rows_of_their_ids(
    dataset: DataSet, images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> None:
    with stream(dataset) as batches:
        for index, batch in enumerate(islice(batches, 20)):
            assert batch.index == index
            assert batch.images.dtype == torch.uint8
            assert batch.labels is not None
            assert batch.labels.dtype == torch.int64
            assert np.array_equal(batch.images.numpy(), images[batch.ids])
            assert np.array_equal(batch.labels.numpy(), labels[batch.ids])


def test_batches_cross_epochs_and_hold_each_row_once_per_epoch(dataset: DataSet) -> None:
    with stream(dataset, batch=40) as batches:  # 150 rows: 15 batches are 4 epochs
        ids = np.concatenate([batch.ids for batch in islice(batches, 15)])
    for epoch in ids.reshape(4, 150):
        assert sorted(epoch.tolist()) == list(range(150))


@pytest.mark.parametrize("world", range(1, 8))
def test_slices_join_to_the_global_batch_at_any_world_size(dataset: DataSet, world: int) -> None:
    bounds = [rank * 20 // world for rank in range(world + 1)]
    with stream(dataset) as alone:
        whole = [next(alone) for _ in range(10)]
    parts = []
    for lo, hi in pairwise(bounds):
        with stream(dataset, slice(lo, hi)) as part:
            parts.append([next(part) for _ in range(10)])
    for k, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[k].images for part in parts]), batch.images)
        assert np.concatenate([part[k].ids for part in parts]).tolist() == batch.ids.tolist()


@pytest.mark.parametrize("after", [0, 1, 5, 8, 23])
def test_resume_equals_never_stopping(dataset: DataSet, path: Path, after: int) -> None:
    with stream(dataset) as batches:
        for _ in range(after):
            next(batches)
        state = json.loads(json.dumps(batches.state()))
        expected = [next(batches) for _ in range(10)]
    assert state["position"] == after * 20
    with Stream.resume(DataSet.open(path), state, rows=slice(0, 20)) as resumed:
        for batch in expected:
            again = next(resumed)
            assert again.index == batch.index
            assert torch.equal(again.images, batch.images)
            assert batch.labels is not None
            assert again.labels is not None
            assert torch.equal(again.labels, batch.labels)


@given(
    batch=st.integers(7, 60),
    window=st.integers(1, 12),
    seed=st.integers(0, 2**63 - 1),
    start=st.integers(0, 10**6),
    stretches=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 3)), min_size=2, max_size=4),
    closed=st.sets(st.integers(0, 9), max_size=3),
)
@example(batch=20, window=3, seed=0, start=0, stretches=[(1, 3), (3, 3), (2, 3)], closed=set())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_workers_that_come_and_go_change_nothing(
    dataset: DataSet,
    batch: int,
    window: int,
    seed: int,
    start: int,
    stretches: list[tuple[int, int]],
    closed: set[int],
) -> None:
    position = start * batch
    state: dict[str, object] = {
        "fingerprint": dataset.fingerprint,
        "order_version": 1,
        "split": "train",
        "seed": seed,
        "batch": batch,
        "window_blocks": window,
        "position": position,
        "quarantine": [[block, position + batch] for block in sorted(closed)],
    }
    num = sum(batches for _, batches in stretches)
    with Stream.resume(dataset, state, rows=slice(0, batch)) as alone:
        whole = [next(alone) for _ in range(num)]
    parts: list[list[RawBatch]] = []
    for size, batches in stretches:
        with ExitStack() as stack:
            rows = [slice(batch * rank // size, batch * (rank + 1) // size) for rank in range(size)]
            ranks = [stack.enter_context(Stream.resume(dataset, state, rows=own)) for own in rows]
            parts += [[next(rank) for rank in ranks] for _ in range(batches)]
            (state,) = {json.dumps(rank.state()): rank.state() for rank in ranks}.values()  # the same on all
        assert len(json.dumps(state)) < 1000
    for expected, slices in zip(whole, parts, strict=True):
        assert np.concatenate([part.ids for part in slices]).tolist() == expected.ids.tolist()
        assert torch.equal(torch.cat([part.images for part in slices]), expected.images)


def test_reading_ahead_does_not_move_the_state(dataset: DataSet) -> None:
    with stream(dataset) as batches:
        for k in range(12):
            for ahead in batches._ahead:
                ahead.result()  # everything that can be read ahead, is
            assert batches.state()["position"] == batches.position == k * 20
            assert next(batches).index == k


def test_ready_takes_nothing(dataset: DataSet) -> None:
    with stream(dataset) as batches:
        for k in range(5):
            batches.ready()
            assert batches.position == k * 20
            assert next(batches).index == k
    with pytest.raises(RuntimeError, match="closed"):
        batches.ready()


def test_a_batch_stays_what_it_was(dataset: DataSet) -> None:
    with stream(dataset) as batches:
        kept = [next(batches) for _ in range(10)]
        for batch in kept:
            assert np.array_equal(batch.images.numpy(), dataset.fetch(batch.ids))


def test_without_labels(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    from shoal.data.write import write_dataset

    out = tmp_path / "bare"
    write_dataset(out, {"train": [(images, None)]}, shape=(3, 4, 5), class_names=None, source="test")
    dataset = DataSet.open(out)
    assert not (out / "labels.arrow").exists()
    assert dataset.class_names is None
    assert dataset.labels("train") is None
    with stream(dataset) as batches:
        assert next(batches).labels is None


def test_damage_reaches_the_consumer_each_time_and_holds_the_position(
    path: Path, damage: Callable[[Path, int], None]
) -> None:
    damage(path / "shard-00000.arrow", 1500)
    with stream(DataSet.open(path)) as batches:
        for _ in range(2):
            with pytest.raises(DataError, match=r"block \d of shard-00000.arrow \(rows \d+ to \d+\) has xxh3"):
                list(islice(batches, 8))
            with pytest.raises(DataError, match="has xxh3"):
                batches.ready()
            position = batches.position
        assert batches.position == position


def test_several_batches_are_read_at_a_time_and_damage_stays_where_it_is(
    path: Path, damage: Callable[[Path, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stream(DataSet.open(path), batch=5) as batches:
        whole = [next(batches) for _ in range(60)]
    assert {batch.images.untyped_storage().nbytes() // batch.images.nbytes for batch in whole} >= {1, 2, 4, 8}
    damage(path / "shard-00000.arrow", 1500)

    def until_damaged(read_bytes: int) -> list[list[int]]:
        monkeypatch.setattr("shoal.data.stream.READ_BYTES", read_bytes)
        got: list[list[int]] = []
        with stream(DataSet.open(path), batch=5) as batches, pytest.raises(DataError, match="has xxh3"):
            got.extend(batch.ids.tolist() for batch in batches)  # keeps what came before the error
        return got

    together, alone = until_damaged(1 << 20), until_damaged(1)
    assert together == alone == [batch.ids.tolist() for batch in whole[: len(alone)]]
    assert len(alone) < 30  # an epoch


def test_the_next_window_is_asked_for_when_one_begins(dataset: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[int]] = []
    monkeypatch.setattr("shoal.data.stream.READ_BYTES", 1)  # batch by batch, and no read spans a whole window
    monkeypatch.setattr(DataSet, "prefetch", lambda self, ids: asked.append({*(ids // 16).tolist()}))
    with stream(dataset, batch=5) as batches:  # no window is shorter, so that each is where some batch ends
        ids = [next(batches).ids.tolist() for _ in range(120)]  # four epochs
        for future in batches._ahead:
            future.result()
    # An epoch is 10 blocks in windows of 3, the last one with a single block.
    rows = [row for batch in ids for row in batch]
    for epoch in range(4):
        met = list(dict.fromkeys(row // 16 for row in rows[150 * epoch : 150 * epoch + 150]))
        for window in range(4):
            blocks = {*met[3 * window : 3 * window + 3]}
            if window or epoch:
                assert asked.pop(0) == blocks
    assert len(asked) <= 2  # of what is read ahead


def test_close_ends_the_thread(dataset: DataSet) -> None:
    before = threading.active_count()
    batches = stream(dataset)
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    batches.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)


def test_one_state_for_all_ranks(dataset: DataSet) -> None:
    with stream(dataset, slice(0, 10)) as one, stream(dataset, slice(10, 20)) as two:
        next(one), next(two)
        assert one.state() == two.state()
        assert len(json.dumps(one.state())) < 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "0" * 64}, r"fingerprint 000000000000…, but .* has "),
        ({"order_version": 2}, "has version 2, this shoal's has 1"),
        ({"split": "trian"}, r"no split 'trian' \(did you mean 'train'\?\)"),
        ({"position": 30}, "position 30 is not a multiple of batch 20"),
        ({"position": "30"}, "wrong here: position"),
        ({"extra": 1}, "wrong here: extra"),
    ],
)
def test_refused_states(dataset: DataSet, change: dict[str, object], message: str) -> None:
    with stream(dataset) as batches:
        state = batches.state()
    check_state(state, dataset)
    with pytest.raises(DataError, match=message):
        Stream.resume(dataset, {**state, **change}, rows=slice(0, 20))


def test_refused_arguments(dataset: DataSet) -> None:
    with pytest.raises(DataError, match="rows 3:3 of batch 20 are none"):
        stream(dataset, slice(3, 3))
    with pytest.raises(DataError, match=r"batch 0 .* must both be at least 1"):
        stream(dataset, batch=0)
    with pytest.raises(DataError, match="no split 'tset'"):
        Stream(dataset, split="tset", batch=4, seed=0, rows=slice(0, 4))
