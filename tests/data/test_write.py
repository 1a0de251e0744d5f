import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shoal.data import DataSet
from shoal.data.verify import verify
from shoal.data.write import Chunk, write_dataset
from shoal.errors import DataError

PIXELS = np.arange(10 * 4, dtype=np.uint8).reshape(10, 1, 2, 2)
NUMBERS = np.arange(10) % 3


def write(out: Path, chunks: Any, **options: Any) -> None:
    settings: dict[str, Any] = {"shape": (1, 2, 2), "class_names": ["a", "b", "c"], "source": "test"}
    write_dataset(out, {"train": chunks}, **{**settings, **options})


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 0),
    rows_per_block=st.integers(1, 20),
    shard_bytes=st.integers(1, 300),
)
def test_any_division_reads_back(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], rows_per_block: int, shard_bytes: int
) -> None:
    out = tmp_path_factory.mktemp("sets") / "set"
    images = np.random.default_rng(sum(sizes)).integers(0, 256, (sum(sizes), 1, 2, 3), dtype=np.uint8)
    chunks: list[Chunk] = [(part, None) for part in np.split(images, np.cumsum(sizes)[:-1])]
    manifest = write_dataset(
        out,
        {"all": chunks},
        shape=(1, 2, 3),
        class_names=None,
        source="test",
        rows_per_block=rows_per_block,
        shard_bytes=shard_bytes,
    )
    blocks_per_shard = max(1, shard_bytes // (rows_per_block * 6))
    assert all(len(shard.blocks) <= blocks_per_shard for shard in manifest.shards)
    assert np.array_equal(DataSet.open(out).rows("all", 0, len(images)), images)
    assert verify(out) == []


def test_blocks_are_about_one_mebibyte(tmp_path: Path) -> None:
    write(tmp_path / "set", [(PIXELS, NUMBERS)])
    assert DataSet.open(tmp_path / "set").manifest.rows_per_block == (1 << 20) // 4


def test_golden_fingerprint(tmp_path: Path) -> None:
    # Pinned: checkpoints name the data set by it, so that another value would orphan every run there is.
    write(tmp_path / "set", [(PIXELS, NUMBERS)], rows_per_block=4, shard_bytes=16)
    assert (
        DataSet.open(tmp_path / "set").fingerprint == "d17c5dc4c9ed9913f7e62b02438b0900fb5037d2d990ea5ce08b96512896c253"
    )


def test_progress_counts_over_the_splits(tmp_path: Path) -> None:
    seen: list[int] = []
    parts: list[Chunk] = [(PIXELS[:4], None), (PIXELS[4:], None)]
    write_dataset(
        tmp_path / "set",
        {"train": parts, "test": parts},
        shape=(1, 2, 2),
        class_names=None,
        source="test",
        progress=seen.append,
    )
    assert seen == [4, 10, 14, 20]


def test_an_empty_destination_is_fine(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write(tmp_path / "set", [(PIXELS, NUMBERS)])
    assert DataSet.open(tmp_path / "set").splits == {"train": 10}


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_an_existing_destination_is_refused_before_reading(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "set"
    file = out if kind == "file" else out / "file"
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")

    def chunks() -> Iterator[Chunk]:
        raise AssertionError("the source was read")
        yield

    with pytest.raises(DataError, match="set exists already and is never overwritten; choose another --out"):
        write(out, chunks())
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("chunk", "options", "message"),
    [
        ((PIXELS.astype(np.float32), NUMBERS), {}, r"shape \[1, 2, 2\] and type float32 do not fit"),
        ((PIXELS[:, :, :1], NUMBERS), {}, r"shape \[1, 1, 2\] and type uint8 do not fit the data set's \[1, 2, 2\]"),
        ((PIXELS, NUMBERS[:9]), {}, "10 images but 9 labels"),
        ((PIXELS, NUMBERS + 1), {}, r"labels run from 1 to 3, but 3 classes are numbered 0 to 2"),
        ((PIXELS, NUMBERS - 2), {}, "labels run from -2 to 0"),
        ((PIXELS, NUMBERS), {"class_names": None}, "has labels but the classes have no names"),
        ((PIXELS, NUMBERS), {"class_names": ["a", "a", "b"]}, r"class names \['a', 'a', 'b'\] must be .* different"),
        ((PIXELS, None), {"class_names": []}, r"class names \[\] must be at least one"),
        ((PIXELS, NUMBERS), {"class_names": ["a", "b", "\udcff"]}, r"class name '\\udcff' is not valid Unicode"),
        ((PIXELS[:0], None), {}, "split 'train' of test has no images"),
    ],
)
def test_refused_chunks_leave_nothing(tmp_path: Path, chunk: Chunk, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write(tmp_path / "set", [chunk], **options)
    assert list(tmp_path.iterdir()) == []


def test_no_splits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="test has no images"):
        write_dataset(tmp_path / "set", {}, shape=(1, 2, 2), class_names=None, source="test")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_broken_off_import_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def chunks() -> Iterator[Chunk]:
        for _ in range(5):
            yield PIXELS, NUMBERS
        assert any(tmp_path.rglob("*-00001.part"))  # files were being written
        raise error

    with pytest.raises(type(error)):
        write(tmp_path / "set", chunks(), rows_per_block=4, shard_bytes=64)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_passes_through_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.data import shard_writer

    def full(self: object, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shard_writer._HashedFile, "write", full)
    with pytest.raises(OSError, match="No space left on device"):
        write(tmp_path / "set", [(PIXELS, NUMBERS)])
    assert list(tmp_path.iterdir()) == []


def test_chunks_may_be_views_and_reused(tmp_path: Path) -> None:
    def chunks() -> Iterator[tuple[NDArray[np.uint8], None]]:
        buffer = np.empty((4, 2, 2, 1), np.uint8)
        for value in range(5):
            buffer[:] = value
            yield buffer.transpose(0, 3, 1, 2), None

    write(tmp_path / "set", chunks(), rows_per_block=3)
    rows = DataSet.open(tmp_path / "set").rows("train", 0, 20)
    assert rows[:, 0, 0, 0].tolist() == np.repeat(range(5), 4).tolist()
