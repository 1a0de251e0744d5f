"""Data sets on an object store: the same rows as from the directory, and no wrong byte from a store or a cache."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from tests.data.encoded import encode, write
from tests.storage.faulty import Fault
from tests.storage.s3 import S3, s3, s3_port

from shoal.data import DataSet, load_manifest
from shoal.data.blocks import PARALLEL_READS
from shoal.data.remote import RemoteShards, read_spans
from shoal.data.shard import BlockRows
from shoal.data.write import write_dataset
from shoal.errors import DamagedBlockError, DataError, StorageError
from shoal.quality.extractor import random_extractor
from shoal.quality.store import default_extractor, keep, kept
from shoal.storage.cache import BlockCache
from shoal.storage.location import Location
from shoal.storage.retry import Patience, patience

__all__ = ["s3", "s3_port"]

EVERYTHING = np.arange(200)


@pytest.fixture(autouse=True)
def _little_patience() -> object:
    with patience(Patience(total_sec=20, first_sec=0.01, most_sec=0.1, on_wait=lambda sentence: None)):
        yield


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BlockCache:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SHOAL_CACHE_BYTES", "1GiB")
    return BlockCache.of_this_node()


@pytest.fixture
def put(s3: S3) -> Callable[[Path], Location]:
    """Upload a data set."""

    def upload(folder: Path) -> Location:
        for file in folder.iterdir():
            (s3.root / folder.name / file.name).upload(file)
        return s3.root / folder.name

    return upload


def reads(s3: S3, what: str = "") -> int:
    return sum(method == "GET" and what in path for method, path in s3.endpoint.requests)


def test_equals_the_directory(
    path: Path, put: Callable[[Path], Location], cache: BlockCache, s3: S3, images: NDArray[np.uint8]
) -> None:
    place = put(path)
    s3.endpoint.requests.clear()
    local, remote = DataSet.open(path), DataSet.open(str(place), cache)
    assert not any("shard" in name for _, name in s3.endpoint.requests)  # nothing is looked at up front
    assert remote.location == place
    assert remote.fingerprint == local.fingerprint
    found, expected = remote.labels("train"), local.labels("train")
    assert found is not None
    assert expected is not None
    assert np.array_equal(found, expected)
    ids = np.random.default_rng(0).integers(0, 200, 500)
    assert np.array_equal(remote.fetch(ids), images[ids])
    out = np.zeros((500, 3, 4, 5), np.uint8)
    assert remote.fetch(ids, out) is out
    assert np.array_equal(out, images[ids])
    assert np.array_equal(remote.rows("test", 5, 45), images[155:195])
    assert remote.fetch(EVERYTHING[:0]).shape == (0, 3, 4, 5)
    with pytest.raises(DataError, match=f"data set {place} is not in a local directory".replace("?", r"\?")):
        print(remote.path)


def test_a_block_is_one_request_per_node(
    path: Path, put: Callable[[Path], Location], cache: BlockCache, s3: S3, images: NDArray[np.uint8]
) -> None:
    place = put(path)
    dataset = DataSet.open(place, cache)
    s3.endpoint.requests.clear()
    for _ in range(3):
        assert np.array_equal(dataset.fetch(EVERYTHING), images)
    assert reads(s3, "shard") == 4 + 14  # footers and blocks
    again = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(again.fetch(EVERYTHING), images)
    assert reads(s3, "shard") == 4 + 14


def test_encoded_rows(tmp_path: Path, put: Callable[[Path], Location], cache: BlockCache) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 12, 16, 3), dtype=np.uint8)
    place = put(write(tmp_path / "encoded", [encode(each) for each in pixels], (3, 12, 16)))
    for _ in range(2):  # from the store, from the cache
        dataset = DataSet.open(place, cache)
        ids = np.random.default_rng(1).integers(0, 37, 90)
        assert np.array_equal(dataset.fetch(ids), pixels[ids].transpose(0, 3, 1, 2))


def test_prefetched_blocks_are_not_read_again(
    path: Path, put: Callable[[Path], Location], cache: BlockCache, s3: S3, images: NDArray[np.uint8]
) -> None:
    dataset = DataSet.open(put(path), cache)
    s3.endpoint.requests.clear()
    asked = {name: Event() for name in ("shard-00000", "shard-00003")}

    def note(method: str, path: str) -> None:
        for name, event in asked.items():
            if name in path:
                event.set()

    s3.endpoint.before = note
    dataset.prefetch(np.array([0, 17, 0, 199]))
    dataset.prefetch(np.array([0, 199]))
    assert all(event.wait(60) for event in asked.values())
    assert np.array_equal(dataset.fetch(np.array([0, 17, 199])), images[[0, 17, 199]])
    assert reads(s3, "shard") == 5  # of two shards a footer each, and three blocks


def test_a_prefetch_that_fails_says_nothing(path: Path, put: Callable[[Path], Location], cache: BlockCache) -> None:
    place = put(path)
    (place / "shard-00000.arrow").delete()
    dataset = DataSet.open(place, cache)
    dataset.prefetch(EVERYTHING[:64])
    with pytest.raises(DamagedBlockError):
        dataset.fetch(EVERYTHING[:64])
    assert dataset.fetch(EVERYTHING[64:]).shape == (136, 3, 4, 5)


def test_faults_that_pass(
    path: Path, put: Callable[[Path], Location], cache: BlockCache, s3: S3, images: NDArray[np.uint8]
) -> None:
    place = put(path)
    s3.endpoint.faults = [
        Fault(3, status=500),
        Fault(3, "GET", cut="announced", path="shard-00000"),
        *(Fault(3, "GET", cut="unnoticed", path=name) for name in ("manifest", "labels", "shard-00001")),
    ]
    dataset = DataSet.open(place, cache)
    assert np.array_equal(dataset.fetch(EVERYTHING), images)
    found, expected = dataset.labels("train"), DataSet.open(path).labels("train")
    assert found is not None
    assert expected is not None
    assert np.array_equal(found, expected)
    assert not any(fault.times for fault in s3.endpoint.faults)


def test_a_store_that_refuses(path: Path, put: Callable[[Path], Location], cache: BlockCache, s3: S3) -> None:
    place = put(path)
    dataset = DataSet.open(place, cache)
    s3.endpoint.faults = [Fault(99, status=403)]
    with pytest.raises(StorageError) as caught:
        dataset.fetch(EVERYTHING)
    assert not isinstance(caught.value, DataError)


def test_a_store_that_is_gone_is_waited_for_once(
    path: Path,
    put: Callable[[Path], Location],
    cache: BlockCache,
    s3: S3,
    images: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = DataSet.open(put(path), cache)
    tried = []
    read = RemoteShards.read

    def spy(shards: RemoteShards, block: int, *, again: bool) -> BlockRows:
        tried.append(block)
        return read(shards, block, again=again)

    monkeypatch.setattr(RemoteShards, "read", spy)
    s3.endpoint.away()
    with patience(Patience(total_sec=0.5, on_wait=lambda sentence: None)), pytest.raises(StorageError):
        dataset.fetch(EVERYTHING)
    assert len(tried) == PARALLEL_READS  # of 14 blocks
    s3.endpoint.back()
    assert np.array_equal(dataset.fetch(EVERYTHING), images)


def test_nothing_there(s3: S3, cache: BlockCache) -> None:
    with pytest.raises(DataError, match=r"data set s3://.*/none\?.* does not exist; make one with"):
        DataSet.open(s3.root / "none", cache)
    (s3.root / "some" / "image.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"s3://.*/some\?.* has no manifest.json, so it is not an imported data set"):
        DataSet.open(s3.root / "some", cache)


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda shard, right: shard.delete(), "lies in an object that is missing"),
        (lambda shard, right: shard.write_bytes(right[:-100]), r"lies in an object that has [\d,]+ bytes where the"),
        (
            lambda shard, right: shard.write_bytes(bytes(len(right))),
            "lies in an object that is not readable as an Arrow",
        ),
        (lambda shard, right: shard.write_bytes((shard.parent / "shard-00000.arrow").read_bytes()), "has xxh3"),
    ],
    ids=["missing", "truncated", "zeros", "another one's"],
)
def test_a_shard_that_is_not_the_one(
    path: Path,
    put: Callable[[Path], Location],
    cache: BlockCache,
    images: NDArray[np.uint8],
    harm: Callable[[Location, bytes], None],
    problem: str,
) -> None:
    place = put(path)
    shard = place / "shard-00001.arrow"
    right = shard.read_bytes()
    harm(shard, right)
    dataset = DataSet.open(place, cache)
    message = rf"data set s3://.*: block 1 of shard-00001.arrow \(rows 80 to 95\) {problem}.*: it was damaged"
    with pytest.raises(DamagedBlockError, match=message) as caught:
        dataset.fetch(np.array([3, 90]))
    assert (caught.value.block, caught.value.first_row, caught.value.rows) == (5, 80, 16)
    healthy = np.r_[0:64, 128:200]
    assert np.array_equal(dataset.fetch(healthy), images[healthy])
    shard.write_bytes(right)
    assert np.array_equal(dataset.fetch(EVERYTHING), images)  # repaired while it is open


def test_an_object_that_is_replaced_by_one_of_another_layout(
    path: Path, put: Callable[[Path], Location], cache: BlockCache, images: NDArray[np.uint8]
) -> None:
    place = put(path)
    right = (path / "shard-00002.arrow").read_bytes()
    reader = pa.ipc.open_file(right)
    swapped = pa.BufferOutputStream()
    with pa.ipc.new_file(swapped, reader.schema) as writer:
        writer.write_batch(reader.get_batch(1))
        writer.write_batch(reader.get_batch(0))
    assert len(swapped.getvalue()) == len(right)
    (place / "shard-00002.arrow").write_bytes(swapped.getvalue().to_pybytes())
    dataset = DataSet.open(place, cache)
    with pytest.raises(DamagedBlockError, match=r"\(rows 128 to 143\) has 6 rows where the manifest says 16"):
        dataset.fetch(EVERYTHING[128:129])
    (place / "shard-00002.arrow").write_bytes(right)
    assert np.array_equal(dataset.fetch(EVERYTHING), images)


def test_another_data_sets_shard(
    path: Path, tmp_path: Path, put: Callable[[Path], Location], cache: BlockCache, images: NDArray[np.uint8]
) -> None:
    place = put(path)
    others = images[::-1].copy()
    write_dataset(
        tmp_path / "other",
        {"train": [(others[:150], None)], "test": [(others[150:], None)]},
        shape=(3, 4, 5),
        class_names=None,
        source="",
        rows_per_block=16,
        shard_bytes=4 * 16 * 60,
    )
    other = DataSet.open(put(tmp_path / "other"), cache)
    assert np.array_equal(other.fetch(EVERYTHING), others)  # its blocks are in the cache, under its own name
    (place / "shard-00002.arrow").upload(tmp_path / "other" / "shard-00002.arrow")
    with pytest.raises(DamagedBlockError, match=r"block 0 of shard-00002.arrow \(rows 128 to 143\) has xxh3"):
        DataSet.open(place, cache).fetch(EVERYTHING)


def test_a_changed_byte_in_the_store(
    path: Path, put: Callable[[Path], Location], cache: BlockCache, images: NDArray[np.uint8]
) -> None:
    place = put(path)
    shard = place / "shard-00000.arrow"
    data = bytearray(shard.read_bytes())
    data[data.index(images[40].tobytes())] ^= 1
    shard.write_bytes(data)
    dataset = DataSet.open(place, cache)
    with pytest.raises(DamagedBlockError, match=r"block 2 of shard-00000.arrow \(rows 32 to 47\) has xxh3"):
        dataset.fetch(EVERYTHING)
    assert not (cache.folder / dataset.fingerprint / "shard-00000.arrow" / "2").exists()
    assert np.array_equal(dataset.fetch(EVERYTHING[48:]), images[48:])


def test_a_changed_byte_in_the_cache_heals(
    path: Path, put: Callable[[Path], Location], cache: BlockCache, s3: S3, images: NDArray[np.uint8]
) -> None:
    place = put(path)
    DataSet.open(place, cache).fetch(EVERYTHING)
    files = [file for file in (cache.folder / load_manifest(place).fingerprint).glob("*/*") if file.is_file()]
    assert len(files) == 14
    harms: list[Callable[[bytes], bytes]] = [lambda data: data[:-1], lambda data: b"", lambda data: data[:-1] + b"?"]
    for file, harm in zip(files, harms, strict=False):
        data = file.read_bytes()
        file.unlink()
        file.write_bytes(harm(data))
    s3.endpoint.requests.clear()
    fresh = DataSet.open(place, BlockCache(cache.folder, cache.cap_bytes))
    assert np.array_equal(fresh.fetch(EVERYTHING), images)
    blocks_of_shards = reads(s3, "shard")
    assert 3 < blocks_of_shards <= 6  # three blocks, and the footers of the shards that they are in
    assert np.array_equal(DataSet.open(place, cache).fetch(EVERYTHING), images)
    assert reads(s3, "shard") == blocks_of_shards


def test_damaged_labels(
    path: Path, put: Callable[[Path], Location], cache: BlockCache, damage: Callable[[Path, int], None]
) -> None:
    damage(path / "labels.arrow", 400)
    dataset = DataSet.open(put(path), cache)
    with pytest.raises(DataError, match=r"labels.arrow\?.*: xxh3 is .* the labels were changed after the import"):
        dataset.labels("train")


def test_spans_are_those_of_pyarrow(path: Path) -> None:
    for shard in load_manifest(path).shards:
        with pa.OSFile(str(path / shard.path)) as file:
            spans = read_spans(file, shard).tolist()
            reader = pa.ipc.open_file(file)
            assert len(spans) == reader.num_record_batches
            for index, (start, num_bytes) in enumerate(spans):
                message = pa.py_buffer(file.read_at(num_bytes, start))
                assert pa.ipc.read_record_batch(message, reader.schema).equals(reader.get_batch(index))


def test_a_damaged_footer_never_leads_outside(path: Path) -> None:
    shard = load_manifest(path).shards[0]
    right = (path / shard.path).read_bytes()
    num_footer = int.from_bytes(right[-10:-6], "little") + 10
    random = np.random.default_rng(0)
    for _ in range(500):
        data = bytearray(right)
        for position in random.integers(len(data) - num_footer, len(data), random.integers(1, 4)):
            data[position] ^= 1 << random.integers(8)
        try:
            spans = read_spans(pa.BufferReader(bytes(data)), shard)
        except DataError:
            continue
        assert spans.shape == (4, 2)
        assert (spans > 0).all()
        assert (spans.sum(axis=1) <= len(data)).all()


def test_extractors_live_beside_the_data_set(
    path: Path, put: Callable[[Path], Location], cache: BlockCache, s3: S3
) -> None:
    dataset = DataSet.open(put(path), cache)
    assert kept(dataset) == []
    place = keep(random_extractor((1, 8, 8), seed=3), dataset)
    assert str(place).startswith(f"s3://{s3.bucket}/set/extractors/random-")
    assert [facts.seed for _, facts in kept(dataset)] == [3]
    assert default_extractor(dataset).facts.shape == dataset.shape  # not the one that was made for other images
    fitting = random_extractor(dataset.shape, seed=4)
    keep(fitting, dataset)
    keep(fitting, dataset)
    assert default_extractor(dataset).facts == fitting.facts
    s3.endpoint.faults = [Fault(99, status=403)]
    with pytest.raises(StorageError):
        kept(dataset)


READ_AN_EPOCH = """
import logging, re, sys
from pathlib import Path
import numpy as np
from shoal.data import DataSet, Order
from shoal.data import blocks
from shoal.storage.cache import BlockCache
logging.disable()

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

blocks.HELD_BYTES = 4 << 20
dataset = DataSet.open(sys.argv[1], BlockCache(Path(sys.argv[2]), 6 << 20))
order = Order(dataset.fingerprint, 0, dataset.blocks("all"), window_blocks=2)
seen, total, used = 0, 0, []
for start in range(0, order.num_rows, 64):
    ids = order.ids(start, min(start + 64, order.num_rows))
    dataset.prefetch(ids)
    total += int(dataset.fetch(ids).sum())
    seen += len(ids)
    used.append(anonymous())
late = used[len(used) // 4:]
print(seen, total, max(late) - late[0])
"""


@pytest.mark.parametrize("folder", ["small cache", "a file/cache"])
def test_memory_is_flat_over_an_epoch(tmp_path: Path, put: Callable[[Path], Location], folder: str) -> None:
    """Of more data than cache and maps may hold; also where there can be no cache and blocks stay in memory."""
    (tmp_path / "a file").touch()
    images = np.random.default_rng(0).integers(0, 256, (1536, 3, 64, 64), dtype=np.uint8)  # 18 MiB
    write_dataset(tmp_path / "big", {"all": [(images, None)]}, shape=(3, 64, 64), class_names=None, source="")
    place = put(tmp_path / "big")
    done = subprocess.run(
        [sys.executable, "-c", READ_AN_EPOCH, str(place), str(tmp_path / folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    seen, total, grown = map(int, done.stdout.split())
    assert (seen, total) == (1536, int(images.sum()))
    assert grown < 6 << 20, f"{grown:,} bytes"
    assert sum(file.stat().st_size for file in (tmp_path / "small cache").rglob("*") if file.is_file()) <= 6 << 20
