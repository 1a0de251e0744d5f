"""Whatever happens to the files of a data set or of the cache: no wrong byte is delivered, and no good data is lost."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.data.generated_source import Generated
from tests.storage.s3 import S3

from shoal.data import DataSet, load_manifest
from shoal.data.importers import run_import
from shoal.data.importers.partial import Command
from shoal.data.remote import read_spans
from shoal.data.verify import verify
from shoal.data.write import write_dataset
from shoal.errors import DamagedBlockError, DataError
from shoal.storage.cache import BlockCache
from shoal.storage.location import Location
from shoal.storage.retry import Patience, patience

SHAPE = (1, 2, 3)
ROWS = 7
SHARD = "shard-00000.arrow"


@pytest.fixture
def tiny_images() -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (ROWS, *SHAPE), dtype=np.uint8)


@pytest.fixture
def tiny(tmp_path: Path, tiny_images: NDArray[np.uint8]) -> Path:
    """Seven images in one shard of three blocks."""
    write_dataset(
        tmp_path / "tiny", {"all": [(tiny_images, None)]}, shape=SHAPE, class_names=None, source="", rows_per_block=3
    )
    return tmp_path / "tiny"


# --- truncated --------------------------------------------------------------------------------------------------------


def test_every_truncation_point(tiny: Path, tiny_images: NDArray[np.uint8]) -> None:
    shard = tiny / SHARD
    right = shard.read_bytes()
    opened = DataSet.open(tiny)  # and not touched before the file is cut off
    for num_bytes in range(len(right)):
        shard.write_bytes(right[:num_bytes])
        with pytest.raises(DataError, match=f"{SHARD} has {num_bytes:,} bytes where the manifest says"):
            DataSet.open(tiny)
        with pytest.raises(DamagedBlockError, match=rf"block 0 of {SHARD} \(rows 0 to 2\) lies in a file that has"):
            opened.fetch(np.arange(ROWS))
        (problem,) = verify(tiny)
        assert (problem.file, problem.rows) == (SHARD, (0, ROWS - 1))
    shard.write_bytes(right)
    assert np.array_equal(opened.fetch(np.arange(ROWS)), tiny_images)


def test_a_hole_anywhere(tiny: Path, tiny_images: NDArray[np.uint8]) -> None:
    """As a power cut leaves what was never synced: zeros, in a file of the right size."""
    shard = tiny / SHARD
    right = shard.read_bytes()
    outcomes = set()
    for start in range(0, len(right), 4):
        for stop in (start + 8, len(right)):
            shard.write_bytes(right[:start] + bytes(len(right[start:stop])) + right[stop:])
            assert bool(verify(tiny)) == (shard.read_bytes() != right)
            refused = _refused(tiny, tiny_images)
            outcomes.add(len(refused))
    assert outcomes == {0, 1, 3, 7}  # nothing but padding, the last block, another one, the whole file


def _refused(path: Path, images: NDArray[np.uint8]) -> set[int]:
    """Read the rows of a data set one by one, compare them, and return those that were refused."""
    dataset, refused = DataSet.open(path), set()
    for row in range(len(images)):
        try:
            found = dataset.fetch(np.array([row]))
        except DamagedBlockError as error:
            assert row in range(error.first_row, error.first_row + error.rows)  # noqa: PT017 - or not at all
            refused.add(row)
        else:
            assert np.array_equal(found[0], images[row])
    return refused


CUT_OFF = """
import os, sys
from pathlib import Path
import numpy as np
from shoal.data import DataSet
from shoal.errors import DamagedBlockError

path, rows = Path(sys.argv[1]), int(sys.argv[2])
shard = path / "shard-00000.arrow"
right = shard.read_bytes()
for num_bytes in range(0, len(right), 4096):
    shard.write_bytes(right)
    dataset = DataSet.open(path)
    first = dataset.fetch(np.arange(1))
    os.truncate(shard, num_bytes)
    try:
        dataset.fetch(np.arange(1, rows))
    except DamagedBlockError as error:
        assert error.shard == shard.name
        assert f"{num_bytes:,} bytes" in str(error), error
    else:
        sys.exit(f"cut off at {num_bytes}: not noticed")
print("done")
"""


def test_a_file_that_is_cut_off_after_it_was_mapped(tmp_path: Path) -> None:
    """To touch a mapped page that is gone would be SIGBUS: hence another process."""
    images = np.random.default_rng(0).integers(0, 256, (12, 1, 64, 64), dtype=np.uint8)
    path = tmp_path / "pages"
    write_dataset(path, {"all": [(images, None)]}, shape=(1, 64, 64), class_names=None, source="", rows_per_block=1)
    words = [sys.executable, "-c", CUT_OFF, str(path), "12"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


# --- flipped bits -----------------------------------------------------------------------------------------------------

FLIPS = 500
"""For raw and encoded rows each."""


@pytest.mark.parametrize("encoded", [False, True])
def test_random_single_bit_flips(tmp_path: Path, encoded: bool, tiny_images: NDArray[np.uint8]) -> None:
    """Half of them anywhere, in proportion to the bytes of each file, the others spread over all files evenly."""
    path = tmp_path / "set"
    source = Generated({"train": 30, "test": 11}, encoded=encoded)
    command = Command("generated", "/somewhere", {"split": {"train": 0.95, "val": 0.05}}, {"files": 1})
    run_import(source, path, command=command, rows_per_block=4, shard_bytes=160)
    images, labels = _content(path)
    files = sorted(path.iterdir())
    sizes = np.array([file.stat().st_size for file in files])
    assert {"import.json", "labels.arrow", "manifest.json"} < {file.name for file in files}
    random = np.random.default_rng(encoded)
    hit = set()
    for number in range(FLIPS):
        file = files[random.choice(len(files), p=None if number % 2 else sizes / sizes.sum())]
        right = file.read_bytes()
        wrong = bytearray(right)
        bit = int(random.integers(8 * len(right)))
        wrong[bit // 8] ^= 1 << bit % 8
        file.write_bytes(wrong)
        assert _finds(path), f"bit {bit} of {file.name}"
        _read_all(path, images, labels)
        file.write_bytes(right)
        hit.add(file.name)
    assert hit == {file.name for file in files}
    assert verify(path) == []


def _content(path: Path) -> tuple[list[bytes], NDArray[np.int32]]:
    dataset = DataSet.open(path)
    labels = dataset.labels_at(np.arange(41))
    assert labels is not None
    return _rows(dataset, range(41)), labels


def _rows(dataset: DataSet, ids: range) -> list[bytes]:
    """Return rows as they are stored, so that files need not be images."""
    stored: list[bytes] = []

    class Keep:
        def decode(self, file: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
            stored.append(file.tobytes())

    dataset.decoder = Keep()
    pixels = dataset.fetch(np.array(ids))
    return stored or [row.tobytes() for row in pixels]


def _read_all(path: Path, images: list[bytes], labels: NDArray[np.int32]) -> None:
    """Read a data set that may be damaged; what does not raise must be right."""
    try:
        dataset = DataSet.open(path)
    except DataError:
        return
    for row in range(len(images)):
        with suppress(DataError):
            assert _rows(dataset, range(row, row + 1)) == images[row : row + 1]
    with suppress(DataError):
        np.testing.assert_array_equal(dataset.labels_at(np.arange(len(images))), labels)


def _finds(path: Path) -> bool:
    try:
        return bool(verify(path))
    except DataError:  # without a manifest there is nothing to compare
        return True


# --- another file under its name --------------------------------------------------------------------------------------


def test_a_shard_of_another_data_set_of_the_same_size(path: Path, tmp_path: Path, images: NDArray[np.uint8]) -> None:
    others = images[::-1].copy()
    splits = {"train": [(others[:150], None)], "test": [(others[150:], None)]}
    other, sizes = tmp_path / "other", {"rows_per_block": 16, "shard_bytes": 4 * 16 * 60}
    write_dataset(other, splits, shape=(3, 4, 5), class_names=None, source="", **sizes)  # type: ignore[arg-type]
    shard = "shard-00001.arrow"
    assert (other / shard).stat().st_size == (path / shard).stat().st_size
    shutil.copy(other / shard, path / shard)
    assert _refused(path, images) == set(range(64, 128))
    assert [(found.file, found.rows) for found in verify(path)] == [
        (shard, (first, first + 15)) for first in range(64, 128, 16)
    ]
    assert np.array_equal(DataSet.open(other).fetch(np.arange(200)), others)


def test_a_shard_in_the_place_of_its_neighbour(path: Path, images: NDArray[np.uint8]) -> None:
    one, other = path / "shard-00000.arrow", path / "shard-00001.arrow"
    one.rename(path / "aside")
    other.rename(one)
    (path / "aside").rename(other)
    assert _refused(path, images) == set(range(128))
    assert {found.file for found in verify(path)} == {one.name, other.name}


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.fixture
def _little_patience() -> Iterator[None]:
    with patience(Patience(total_sec=20, first_sec=0.01, most_sec=0.1, on_wait=lambda sentence: None)):
        yield


@pytest.fixture
def place(path: Path, s3: S3, _little_patience: None) -> Location:
    for file in path.iterdir():
        (s3.root / path.name / file.name).upload(file)
    s3.endpoint.requests.clear()
    return s3.root / path.name


READ = """
import os, signal, sys
from pathlib import Path
import numpy as np
from shoal.data import DataSet
from shoal.data.remote import RemoteShards
from shoal.storage import cache as cache_module
from shoal.storage.cache import BlockCache

place, folder, out, seed, dies_at = sys.argv[1:]
writes = 0

def die(file):
    global writes
    writes += 1
    if writes == int(dies_at):
        half = os.fstat(file).st_size // 2
        os.pwrite(file, bytes(half), half)  # as if it had not come further
        os.kill(os.getpid(), signal.SIGKILL)

def fetch(shards, block, fetch=RemoteShards._fetch):
    with open(out + ".fetched", "a") as log:
        log.write(f"{block}\\n")
    return fetch(shards, block)

cache_module.os.fsync = die
RemoteShards._fetch = fetch
dataset = DataSet.open(place, BlockCache(Path(folder), 1 << 30))
print("ready", flush=True)
sys.stdin.read()
rows = np.empty((200, 3, 4, 5), np.uint8)
for ids in np.array_split(np.random.default_rng(int(seed)).permutation(200), 10):
    dataset.prefetch(ids)
    rows[ids] = dataset.fetch(ids)
Path(out).write_bytes(rows.tobytes())
"""


def reader(place: Location, cache: Path, out: Path, seed: int, dies_at: int = 0) -> "subprocess.Popen[bytes]":
    """Begin to read all rows in a process, in an order of its own; it waits until its input ends."""
    words = [sys.executable, "-c", READ, str(place), str(cache), str(out), str(seed), str(dies_at)]
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    return process


def block_reads(s3: S3) -> int:
    """Return how often the store was asked for a part of a shard."""
    return sum(method == "GET" and "shard" in name for method, name in s3.endpoint.requests)


def test_two_processes_that_fill_the_cache_at_once(
    place: Location, tmp_path: Path, s3: S3, images: NDArray[np.uint8]
) -> None:
    outs = [tmp_path / f"out-{seed}" for seed in range(2)]
    processes = [reader(place, tmp_path / "cache", out, seed) for seed, out in enumerate(outs)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(120) for process in processes] == [0, 0]
    for out in outs:
        assert out.read_bytes() == images.tobytes()
    logs = [tmp_path / f"out-{seed}.fetched" for seed in range(2)]
    fetched = [int(block) for log in logs if log.exists() for block in log.read_text().split()]
    assert sorted(fetched) == list(range(14))  # each block once, by either: on a busy machine all by one
    s3.endpoint.requests.clear()
    fresh = DataSet.open(place, BlockCache(tmp_path / "cache", 1 << 30))
    assert np.array_equal(fresh.fetch(np.arange(200)), images)
    assert block_reads(s3) == 0  # nothing that one had written was lost by the other


@pytest.mark.parametrize("dies_at", [1, 6, 14])
def test_a_cache_whose_filling_was_killed_half_way(
    place: Location, tmp_path: Path, s3: S3, images: NDArray[np.uint8], dies_at: int
) -> None:
    killed = reader(place, tmp_path / "cache", tmp_path / "out", 0, dies_at)
    assert killed.stdin is not None
    killed.stdin.close()
    assert killed.wait(120) == -signal.SIGKILL
    whole = [file for file in (tmp_path / "cache").rglob("shard-*/*") if file.suffix == ""]
    s3.endpoint.requests.clear()
    for _ in range(2):
        fresh = DataSet.open(place, BlockCache(tmp_path / "cache", 1 << 30))
        assert np.array_equal(fresh.fetch(np.arange(200)), images)
    assert 14 - len(whole) <= block_reads(s3) <= 14 - len(whole) + 4 * 4  # the rest, and footers


def test_a_cache_on_a_full_disk(
    place: Location, tmp_path: Path, images: NDArray[np.uint8], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "none", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        for number in range(2):
            dataset = DataSet.open(place, BlockCache(folder / "cache", 1 << 30))
            for ids in np.array_split(np.random.default_rng(number).permutation(200), 20):
                assert np.array_equal(dataset.fetch(ids), images[ids])
        warned = [record.message for record in caplog.records if "No space left on device" in record.message]
        assert len(warned) == 2  # once for each
        stored = list((folder / "cache").rglob("shard-*/*"))
        assert 0 < len(stored) < 14
        fingerprint = load_manifest(place).fingerprint
        for file in stored:  # what is there is whole
            shard = next(one for one in load_manifest(place).shards if one.path == file.parent.name)
            assert file.stat().st_size == shard.blocks[int(file.name)].rows * 60
            assert file.parent.parent.name == fingerprint
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_damage_of_the_store_does_not_take_what_the_cache_has(
    place: Location, tmp_path: Path, images: NDArray[np.uint8], cut: Callable[[Location], None]
) -> None:
    cache = BlockCache(tmp_path / "cache", 1 << 30)
    assert np.array_equal(DataSet.open(place, cache).fetch(np.arange(64)), images[:64])
    cut(place / "shard-00000.arrow")
    cut(place / "shard-00001.arrow")
    dataset = DataSet.open(place, BlockCache(cache.folder, cache.cap_bytes))
    assert np.array_equal(dataset.fetch(np.arange(64)), images[:64])
    with pytest.raises(DamagedBlockError, match=r"block 0 of shard-00001.arrow"):
        dataset.fetch(np.arange(64, 128))
    assert [found.file for found in verify(place)] == ["shard-00000.arrow", "shard-00001.arrow"]  # past the cache


@pytest.fixture
def cut() -> Callable[[Location], None]:
    """Cut an object off in its middle."""
    return lambda file: file.write_bytes(file.read_bytes()[: file.size() // 2])


def test_a_hole_in_an_object(place: Location, tmp_path: Path, images: NDArray[np.uint8]) -> None:
    shard = load_manifest(place).shards[1]
    object_ = place / shard.path
    with object_.open_input() as file:
        start = int(read_spans(file, shard)[2, 0])
    right = object_.read_bytes()
    object_.write_bytes(right[:start] + bytes(16) + right[start + 16 :])
    dataset = DataSet.open(place, BlockCache(tmp_path / "cache", 1 << 30))
    healthy = np.r_[0:96, 112:200]
    assert np.array_equal(dataset.fetch(healthy), images[healthy])
    with pytest.raises(DamagedBlockError, match=r"block 2 of shard-00001.arrow \(rows 96 to 111\) is not readable as"):
        dataset.fetch(np.arange(100, 101))
    assert [(found.file, found.block) for found in verify(place)] == [(shard.path, 2)]
