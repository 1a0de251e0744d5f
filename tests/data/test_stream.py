import json
import threading
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shoal.data import DataSet, Stream, check_state
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
