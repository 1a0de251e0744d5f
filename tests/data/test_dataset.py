import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shoal.data import DataSet, blocks
from shoal.data import dataset as dataset_module
from shoal.data.gather import Memory
from shoal.data.manifest import Block
from shoal.data.shard import BlockRows
from shoal.data.write import write_dataset
from shoal.errors import DamagedBlockError, DataError


def test_what_it_says_of_itself(dataset: DataSet, path: Path) -> None:
    assert dataset.path == path
    assert dataset.shape == (3, 4, 5)
    assert dataset.splits == {"train": 150, "test": 50}
    assert dataset.num_rows("test") == 50
    assert dataset.class_names == ["ant", "bee", "cat", "dog"]
    assert dataset.fingerprint == dataset.manifest.fingerprint
    assert [shard.rows for shard in dataset.manifest.shards] == [64, 64, 22, 50]
    assert dataset.blocks("test").tolist() == [[150, 16], [166, 16], [182, 16], [198, 2]]


def test_rows_and_labels_in_order(dataset: DataSet, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    assert np.array_equal(dataset.rows("train", 0, 150), images[:150])
    assert np.array_equal(dataset.rows("test", 5, 45), images[155:195])
    assert dataset.rows("test", 3, 3).shape == (0, 3, 4, 5)
    found = dataset.labels("test")
    assert found is not None
    assert found.dtype == np.int32
    assert np.array_equal(found, labels[150:])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.integers(0, 199), max_size=60))
def test_any_ids_in_any_order(dataset: DataSet, images: NDArray[np.uint8], ids: list[int]) -> None:
    wanted = np.array(ids, np.int64)
    assert np.array_equal(dataset.fetch(wanted), images[wanted])
    out = np.zeros((len(ids), 3, 4, 5), np.uint8)
    assert dataset.fetch(wanted, out=out) is out
    assert np.array_equal(out, images[wanted])


def test_ids_that_are_not_there(dataset: DataSet) -> None:
    for ids in ([-1], [200]):
        with pytest.raises(IndexError):
            dataset.fetch(np.array(ids))
    with pytest.raises(IndexError):
        dataset.rows("test", 0, 51)


def test_pickles_as_its_path(dataset: DataSet, images: NDArray[np.uint8]) -> None:
    dataset.fetch(np.arange(200))
    data = pickle.dumps(dataset)
    assert len(data) < 1000
    assert np.array_equal(pickle.loads(data).fetch(np.arange(200)), images)


def test_unknown_split(dataset: DataSet) -> None:
    with pytest.raises(DataError, match=r"no split 'tets' \(did you mean 'test'\?\); it has train, test"):
        dataset.num_rows("tets")


def test_truncated_shard_is_refused_at_open(path: Path) -> None:
    shard = path / "shard-00001.arrow"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(
        DataError, match=r"shard-00001.arrow has [\d,]+ bytes where the manifest says .* import the data"
    ):
        DataSet.open(path)


@pytest.mark.parametrize("name", ["shard-00002.arrow", "labels.arrow"])
def test_missing_file_is_refused_at_open(path: Path, name: str) -> None:
    (path / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing; import the data again"):
        DataSet.open(path)


def test_changed_byte_is_found_at_first_touch(path: Path, damage: Callable[[Path, int], None]) -> None:
    dataset = DataSet.open(path)
    offset = (path / "shard-00003.arrow").read_bytes().index(dataset.rows("test", 20, 21).tobytes())
    damage(path / "shard-00003.arrow", offset)
    fresh = DataSet.open(path)
    fresh.rows("train", 0, 150)
    fresh.rows("test", 0, 16)
    remedy = rf"`shoal data verify {path}` lists all damage, `shoal data repair {path}` mends it"
    message = rf"data set {path}: block 1 of shard-00003.arrow \(rows 166 to 181\) has xxh3 .*: it was .*; {remedy}"
    with pytest.raises(DamagedBlockError, match=message) as caught:
        fresh.rows("test", 20, 21)
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert (error.shard, error.block, error.first_row, error.rows) == ("shard-00003.arrow", 11, 166, 16)
        assert str(error) == str(caught.value)
    assert np.array_equal(fresh.rows("test", 32, 50), dataset.rows("test", 32, 50))


def test_a_shard_that_was_repaired_meanwhile_is_read_again(
    path: Path, damage: Callable[[Path, int], None], images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "HELD_BYTES", 1)  # so that nothing but the shard's first map keeps its first block
    shard = path / "shard-00001.arrow"
    right = shard.read_bytes()
    damage(shard, right.index(images[64 + 16].tobytes()))
    dataset = DataSet.open(path)
    before = dataset.rows("train", 64, 80)
    with pytest.raises(DamagedBlockError):
        dataset.rows("train", 80, 96)
    (path / "repaired").write_bytes(right)
    (path / "repaired").replace(shard)
    assert np.array_equal(dataset.rows("train", 80, 128), images[80:128])
    assert np.array_equal(dataset.rows("train", 64, 80), images[64:80])
    assert np.array_equal(before, images[64:80])


def test_a_block_is_checked_once(dataset: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    check = BlockRows.problem

    def spy(rows: BlockRows, block: Block) -> str | None:
        seen.append(block.xxh3)
        return check(rows, block)

    monkeypatch.setattr(BlockRows, "problem", spy)
    for _ in range(3):
        dataset.rows("train", 0, 150)
    assert len(seen) == len(set(seen)) == 10


def test_many_threads_at_once(path: Path, images: NDArray[np.uint8]) -> None:
    for _ in range(5):
        dataset = DataSet.open(path)
        with ThreadPoolExecutor(8) as pool:
            for rows in pool.map(dataset.fetch, [np.arange(start, 200, 8) for start in range(8)]):
                assert rows.shape == (25, 3, 4, 5)
        assert np.array_equal(dataset.fetch(np.arange(200)), images)


@pytest.mark.parametrize("content", [b"", b"not arrow at all"])
def test_a_shard_that_is_not_arrow(path: Path, content: bytes) -> None:
    shard = path / "shard-00000.arrow"
    shard.write_bytes(content.ljust(shard.stat().st_size, b"\0"))
    with pytest.raises(
        DataError, match=r"block 0 of shard-00000.arrow .* lies in a file that is not readable as an Arrow file: .*"
    ):
        DataSet.open(path).rows("train", 0, 1)


def test_a_shard_of_other_blocks(path: Path) -> None:
    (path / "shard-00001.arrow").write_bytes((path / "shard-00000.arrow").read_bytes())
    with pytest.raises(DataError, match=r"block 0 of shard-00001.arrow \(rows 64 to 79\) has xxh3"):
        DataSet.open(path).rows("train", 64, 65)


def test_a_shard_that_goes_away_or_shrinks(path: Path) -> None:
    dataset = DataSet.open(path)
    (path / "shard-00001.arrow").unlink()
    with pytest.raises(DamagedBlockError, match=r"block 0 of shard-00001.arrow .* lies in a file that is missing: "):
        dataset.rows("train", 64, 65)
    (path / "shard-00002.arrow").write_bytes(b"ARROW1")
    with pytest.raises(DamagedBlockError, match=r"block 0 of shard-00002.arrow .* lies in a file that has 6 bytes"):
        dataset.rows("train", 128, 129)


@pytest.mark.parametrize("at_once", [1, 3])
def test_more_blocks_than_are_in_use_at_a_time(
    dataset: DataSet, images: NDArray[np.uint8], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_module, "BLOCKS_AT_ONCE", at_once)
    ids = np.random.default_rng(0).integers(0, 200, 400)
    assert np.array_equal(dataset.fetch(ids), images[ids])


@given(row_bytes=st.integers(1, 40_000), num=st.integers(0, 30), seed=st.integers(0, 99))
def test_gather_from_anywhere(row_bytes: int, num: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    places = [random.integers(0, 256, row_bytes + 50, np.uint8) for _ in range(5)]
    picks = [
        (int(place), int(start))
        for place, start in zip(random.integers(0, 5, num), random.integers(0, 51, num), strict=True)
    ]
    expected = [places[place][start : start + row_bytes] for place, start in picks]
    addresses = np.array([places[place].ctypes.data + start for place, start in picks], np.int64)
    memory = Memory(row_bytes)
    out = np.empty((num, row_bytes), np.uint8)
    assert memory.gather(addresses, out) is out
    for found in (out, memory.gather(addresses)):
        assert found.shape == (num, row_bytes)
        assert all(np.array_equal(row, right) for row, right in zip(found, expected, strict=True))


def test_rows_longer_than_a_fancy_index_takes(tmp_path: Path) -> None:
    shape = (3, 120, 100)  # 36,000 bytes
    images = np.random.default_rng(0).integers(0, 256, (12, *shape), dtype=np.uint8)
    write_dataset(
        tmp_path / "set", {"all": [(images, None)]}, shape=shape, class_names=None, source="", rows_per_block=5
    )
    dataset = DataSet.open(tmp_path / "set")
    ids = np.array([11, 0, 3, 3, 7])
    for _ in range(2):
        assert np.array_equal(dataset.fetch(ids), images[ids])
        assert np.array_equal(dataset.fetch(ids, np.empty((5, *shape), np.uint8)), images[ids])


def test_changed_labels(path: Path, damage: Callable[[Path, int], None]) -> None:
    damage(path / "labels.arrow", 400)
    dataset = DataSet.open(path)
    with pytest.raises(DataError, match=r"labels.arrow: xxh3 is .* the labels were changed after the import"):
        dataset.labels("train")
