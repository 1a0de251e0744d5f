import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shoal.data import DataSet
from shoal.errors import DataError


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
    with pytest.raises(DataError, match=r"set: block 1 of shard-00003.arrow \(rows 166 to 181\) has xxh3 .* importing"):
        fresh.rows("test", 20, 21)


def test_a_block_is_checked_once(dataset: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.data.shard import MappedShard

    seen: list[tuple[str, int]] = []
    check = MappedShard.block_problem

    def spy(shard: MappedShard, block: int) -> str | None:
        seen.append((shard.shard.path, block))
        return check(shard, block)

    monkeypatch.setattr(MappedShard, "block_problem", spy)
    for _ in range(3):
        dataset.rows("train", 0, 150)
    assert len(seen) == len(set(seen)) == 10


@pytest.mark.parametrize("content", [b"", b"not arrow at all"])
def test_a_shard_that_is_not_arrow(path: Path, content: bytes) -> None:
    shard = path / "shard-00000.arrow"
    shard.write_bytes(content.ljust(shard.stat().st_size, b"\0"))
    with pytest.raises(
        DataError, match=r"shard-00000.arrow is not readable as an Arrow file: .* import the data again"
    ):
        DataSet.open(path).rows("train", 0, 1)


def test_a_shard_of_other_blocks(path: Path) -> None:
    (path / "shard-00001.arrow").write_bytes((path / "shard-00000.arrow").read_bytes())
    with pytest.raises(DataError, match=r"block 0 of shard-00001.arrow \(rows 64 to 79\)"):
        DataSet.open(path).rows("train", 64, 65)


def test_changed_labels(path: Path, damage: Callable[[Path, int], None]) -> None:
    damage(path / "labels.arrow", 400)
    dataset = DataSet.open(path)
    with pytest.raises(DataError, match=r"labels.arrow: xxh3 is .* the labels were changed after the import"):
        dataset.labels("train")
