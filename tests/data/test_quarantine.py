"""Blocks in quarantine: which rows take their places, against a slow reference, and what a stream makes of it."""

import json
import pickle
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shoal.data import DataSet, Stream
from shoal.data.quarantine import MAX_BLOCKS, Quarantine
from shoal.data.write import write_dataset
from shoal.errors import DamagedBlockError, DataError

BLOCKS = 10  # of the training split: nine of 16 rows and one of 6
on_one_data_set = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def stand_in(row: int, closed: Iterable[int], blocks: Mapping[int, list[int]]) -> int:
    """Return the row to read for ``row``: the same place, modulo the rows, in the next block that is open."""
    numbers = sorted(blocks)
    for at, number in enumerate(numbers):
        if row in blocks[number] and number in closed:
            open_after = [other for other in numbers[at + 1 :] + numbers[:at] if other not in closed]
            return blocks[open_after[0]][(row - blocks[number][0]) % len(blocks[open_after[0]])]
    return row


def rows_of(num_rows: int, first: int = 0, first_block: int = 0) -> dict[int, list[int]]:
    starts = range(first, first + num_rows, 16)
    return {first_block + i: [*range(at, min(at + 16, first + num_rows))] for i, at in enumerate(starts)}


def stream(data: DataSet, rows: slice = slice(0, 20), position: int = 0, **more: object) -> Stream:
    return Stream(data, split="train", batch=20, seed=7, rows=rows, position=position, shuffle_window_blocks=3, **more)  # type: ignore[arg-type]  # what is given on


@given(st.sets(st.tuples(st.integers(0, BLOCKS - 1), st.integers(0, 5)), max_size=BLOCKS + 3), st.integers(0, 5))
@on_one_data_set
def test_rows_are_replaced_by_those_of_the_next_open_block(
    dataset: DataSet, entries: set[tuple[int, int]], position: int
) -> None:
    ids = np.random.default_rng(position).permutation(150)
    if {block for block, _ in entries} == {*range(BLOCKS)}:
        with pytest.raises(DataError, match="all blocks of split 'train'"):
            Quarantine(dataset, "train", entries)
        return
    closed = {block for block, since in entries if since <= position}
    expected = [stand_in(row, closed, rows_of(150)) for row in ids.tolist()]
    assert Quarantine(dataset, "train", entries).replace(ids, position).tolist() == expected


def test_by_hand(dataset: DataSet) -> None:
    # Blocks 8 (rows 128 to 143) and 9 (144 to 149) are closed: the next open one is block 0, rows 0 to 15.
    quarantine = Quarantine(dataset, "train", [(9, 40), (8, 20)])
    assert quarantine.replace(np.array([127, 128, 143, 144, 149]), 40).tolist() == [127, 0, 15, 0, 5]
    assert quarantine.replace(np.array([127, 128, 143, 144, 149]), 20).tolist() == [127, 144, 147, 144, 149]
    assert quarantine.replace(np.array([128, 149]), 0).tolist() == [128, 149]
    assert [str(block) for block in quarantine.blocks()] == [
        "block 0 of shard-00002.arrow (rows 128 to 143) since sample 20",
        "block 1 of shard-00002.arrow (rows 144 to 149) since sample 40",
    ]


def test_a_part_of_a_split_keeps_to_its_rows(dataset: DataSet) -> None:
    # Rows 20 to 69: 12 of block 1, then blocks 2 and 3, and 6 of block 4.
    quarantine = Quarantine(dataset, "train[20:70]", [(1, 0), (4, 0)])
    assert quarantine.replace(np.array([20, 31, 64, 69]), 0).tolist() == [32, 43, 32, 37]
    assert [(block.first_row, block.rows) for block in quarantine.blocks()] == [(20, 12), (64, 6)]


def test_another_split(dataset: DataSet) -> None:
    # 50 rows from 150 on, in blocks 10 to 13.
    assert Quarantine(dataset, "test", [(13, 0)]).replace(np.array([150, 198, 199]), 0).tolist() == [150, 150, 151]
    with pytest.raises(DataError, match="block 9 is in quarantine but not in split 'test'"):
        Quarantine(dataset, "test", [(9, 0)])


def test_an_earlier_meeting_counts(dataset: DataSet) -> None:
    assert Quarantine(dataset, "train", [(3, 60), (2, 40)]).having([3, 1], 20).entries == [(1, 20), (3, 20), (2, 40)]


@pytest.fixture(scope="session")
def long(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """60 blocks of two images."""
    path = tmp_path_factory.mktemp("long") / "data"
    images = np.arange(120, dtype=np.uint8).reshape(-1, 1, 1, 1)
    write_dataset(path, {"train": [(images, None)]}, shape=(1, 1, 1), class_names=None, source="test", rows_per_block=2)
    return DataSet.open(path)


def test_there_is_a_limit_and_under_it_a_state_stays_under_1_kb(long: DataSet) -> None:
    far = [(block, 20 * 10**11 + 20 * block) for block in range(60)]  # two trillion images seen
    with stream(long, position=20 * 10**11, quarantine=far[-MAX_BLOCKS:]) as batches:
        state = json.dumps({**batches.state(), "balance": "shares/0123456789abcdef", "seed": 2**63 - 1})
        assert len(state) < 1000
        with pytest.raises(
            DataError, match=rf"{MAX_BLOCKS + 1} blocks of split .* without {MAX_BLOCKS} at most; `shoal"
        ):
            batches.quarantine([3])
        assert batches.state()["quarantine"] == [list(entry) for entry in far[-MAX_BLOCKS:]]  # as it was
        next(batches)


# --- a stream ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(1, 8))
def test_only_the_rows_of_the_block_change(
    dataset: DataSet, path: Path, images: NDArray[np.uint8], damage: Callable[[Path, int], None], size: int
) -> None:
    with stream(dataset) as batches:
        whole = [next(batches).ids.tolist() for _ in range(20)]
    damaged, block = corrupt(path, 5, damage, dataset)
    meets = next(k for k, ids in enumerate(whole) if {*ids} & {*range(16 * block, 16 * block + 16)})
    for rank in range(size):
        rows = slice(20 * rank // size, 20 * (rank + 1) // size)
        with stream(damaged, rows) as batches:
            for k, ids in enumerate(whole):
                if k == meets:
                    batches.quarantine([block])  # as all ranks do when one of them meets it
                batch = next(batches)
                closed = {block} if k >= meets else set()
                assert batch.ids.tolist() == [stand_in(row, closed, rows_of(150)) for row in ids[rows]]
                assert np.array_equal(batch.images.numpy(), images[batch.ids])
            assert batches.state()["quarantine"] == [[block, 20 * meets]]
            assert [b.since for b in batches.quarantined] == [20 * meets]


def corrupt(path: Path, block: int, damage: Callable[[Path, int], None], dataset: DataSet) -> tuple[DataSet, int]:
    """Change a byte of a block of the training split; return the data set, opened anew, and the block."""
    row = dataset.rows("train", 16 * block + 3, 16 * block + 4).tobytes()
    shard = next(shard for shard in sorted(path.glob("*.arrow")) if row in shard.read_bytes())
    damage(shard, shard.read_bytes().index(row) + 5)
    return DataSet.open(path), block


def test_damage_says_which_block_and_a_quarantine_mends_it(
    dataset: DataSet, path: Path, damage: Callable[[Path, int], None]
) -> None:
    damaged, block = corrupt(path, 5, damage, dataset)
    with stream(damaged) as batches:
        with pytest.raises(DamagedBlockError) as caught:
            list(islice(batches, 20))
        error = pickle.loads(pickle.dumps(caught.value))
        assert (error.block, error.first_row, error.rows) == (block, 80, 16)
        batches.quarantine([error.block])
        batches.ready()
        assert len(list(islice(batches, 20))) == 20


def test_a_quarantine_is_resumed(dataset: DataSet) -> None:
    with stream(dataset) as batches:
        for _ in range(3):
            next(batches)
        batches.quarantine([2, 7])
        for _ in range(2):
            next(batches)
        batches.quarantine([3])
        state = json.loads(json.dumps(batches.state()))
        expected = [next(batches).ids.tolist() for _ in range(12)]
    assert state["quarantine"] == [[2, 60], [7, 60], [3, 100]]
    with Stream.resume(dataset, state, rows=slice(0, 20)) as resumed:
        assert [next(resumed).ids.tolist() for _ in range(12)] == expected
    assert not {row // 16 for ids in expected for row in ids} & {2, 3, 7}


def test_before_its_position_a_block_is_read(dataset: DataSet) -> None:
    with stream(dataset, quarantine=[(2, 160)]) as batches, stream(dataset) as plain:
        early = [(next(batches).ids.tolist(), next(plain).ids.tolist()) for _ in range(8)]
        late = [(next(batches).ids.tolist(), next(plain).ids.tolist()) for _ in range(8)]
    assert all(one == other for one, other in early)
    assert any(one != other for one, other in late)


@pytest.mark.parametrize("entries", [[3], [[3]], [["3", 20]], [[3, -20]], [[True, 20]], {"3": 20}])
def test_refused_states(dataset: DataSet, entries: object) -> None:
    with stream(dataset) as batches:
        state = batches.state()
    with pytest.raises(DataError, match="wrong here: quarantine"):
        Stream.resume(dataset, {**state, "quarantine": entries}, rows=slice(0, 20))


def test_a_state_with_too_much_in_quarantine_is_refused(dataset: DataSet) -> None:
    with stream(dataset) as batches:
        state = batches.state()
    with pytest.raises(DataError, match=r"all blocks of split 'train' of .* are damaged; `shoal data verify` lists"):
        Stream.resume(dataset, {**state, "quarantine": [[b, 0] for b in range(BLOCKS)]}, rows=slice(0, 20))
