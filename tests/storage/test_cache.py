import errno
import logging
import mmap
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import xxhash
from tests.storage.faulty import Fault
from tests.storage.s3 import S3

from shoal.errors import ConfigError
from shoal.storage import cache as cache_module
from shoal.storage.cache import BlockCache, ChecksumError
from shoal.storage.retry import Patience, patience

KIB = 1 << 10


def block(number: int, num_bytes: int = 64 * KIB) -> bytes:
    return random.Random(number).randbytes(num_bytes)


class Source:
    """Blocks by number, which counts how often each is fetched."""

    def __init__(self, num_bytes: int = 64 * KIB) -> None:
        self.num_bytes = num_bytes
        self.fetched: list[int] = []

    def ask(self, cache: BlockCache, number: int) -> memoryview:
        data = block(number, self.num_bytes)

        def fetch() -> bytes:
            self.fetched.append(number)
            return data

        found = cache.get(f"print/shard-0/{number}", xxhash.xxh3_64_hexdigest(data), fetch)
        assert found == data
        return found


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def cache(tmp_path: Path) -> BlockCache:
    return BlockCache(tmp_path / "cache", 1 << 30)


def stored(cache: BlockCache) -> dict[str, int]:
    """Return the sizes of the block files, by name, the unfinished ones included."""
    return {
        file.name: file.stat().st_size
        for file in cache.folder.rglob("*")
        if file.is_file() and ".locks" not in file.parts and file.name != ".bytes"
    }


def test_a_block_is_fetched_once_and_mapped_read_only(cache: BlockCache, source: Source) -> None:
    one, two = source.ask(cache, 1), source.ask(cache, 1)
    again = source.ask(BlockCache(cache.folder, cache.cap_bytes), 1)
    assert source.fetched == [1]
    for view in (one, two, again):
        assert isinstance(view.obj, mmap.mmap)
        assert view.readonly
        assert not np.frombuffer(view, np.uint8).flags.writeable
    assert stored(cache) == {"1": 64 * KIB}


def test_a_hit_takes_no_lock(cache: BlockCache, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    source.ask(cache, 1)
    monkeypatch.setattr(cache_module, "held", None)
    source.ask(cache, 1)


def test_a_file_is_checked_once_per_process_and_filling(
    cache: BlockCache, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.ask(cache, 1)
    hashed = []
    true_hash = xxhash.xxh3_64_hexdigest

    def counted(data: bytes) -> str:
        hashed.append(len(data))
        return true_hash(data)

    monkeypatch.setattr("shoal.storage.cache.xxhash.xxh3_64_hexdigest", counted)
    data, digest = block(1), true_hash(block(1))
    other = BlockCache(cache.folder, cache.cap_bytes)  # as another process has it
    for _ in range(3):
        assert other.get("print/shard-0/1", digest, lambda: b"") == data
    assert len(hashed) == 1
    (cache.folder / "print/shard-0/1").unlink()
    assert other.get("print/shard-0/1", digest, lambda: data) == data  # what came, and the new file
    assert len(hashed) == 3


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped bit": lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:],
    "truncated": lambda data: data[:-1],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"\0",
    "another block": lambda data: block(99),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_fetched_again(cache: BlockCache, source: Source, damage: str) -> None:
    source.ask(cache, 1)
    file = cache.folder / "print/shard-0/1"
    file.write_bytes(DAMAGES[damage](block(1)))
    source.ask(BlockCache(cache.folder, cache.cap_bytes), 1)
    source.ask(BlockCache(cache.folder, cache.cap_bytes), 1)
    assert source.fetched == [1, 1]
    assert file.read_bytes() == block(1)


def test_bytes_that_come_wrong_are_asked_for_again(cache: BlockCache) -> None:
    data = block(1)
    coming = [data[:-1], data[:-1] + b"x", data]
    with patience(Patience(first_sec=0.001)):
        assert cache.get("a/b/0", xxhash.xxh3_64_hexdigest(data), lambda: coming.pop(0)) == data
        with pytest.raises(ChecksumError, match=r"block a/b/1: its bytes have xxh3 .* 3 times in a row"):
            cache.get("a/b/1", xxhash.xxh3_64_hexdigest(data), lambda: data[1:])
    assert stored(cache) == {"0": len(data)}


def test_what_fetch_raises_passes_through_and_leaves_nothing(cache: BlockCache, source: Source) -> None:
    def fetch() -> bytes:
        raise OSError(errno.EIO, "of the source, not of the cache")

    with pytest.raises(OSError, match="of the source"):
        cache.get("print/shard-0/1", "0" * 16, fetch)
    assert stored(cache) == {}
    source.ask(cache, 1)


def test_the_least_recently_used_go_first_and_the_cap_holds(tmp_path: Path, source: Source) -> None:
    cache = BlockCache(tmp_path / "cache", 10 * 64 * KIB)
    for number in range(10):
        source.ask(cache, number)
    source.ask(cache, 0)
    source.ask(cache, 3)
    source.ask(cache, 10)  # one more than fits
    assert set(stored(cache)) == {"0", "2", "3", "4", "5", "6", "7", "8", "9", "10"}
    source.ask(cache, 11)
    source.ask(cache, 12)
    assert set(stored(cache)) == {"0", "3", "5", "6", "7", "8", "9", "10", "11", "12"}
    for number in range(13, 60):
        source.ask(cache, number)
        assert sum(stored(cache).values()) <= cache.cap_bytes
    assert source.fetched == list(range(60))


def test_a_block_larger_than_the_cap_is_served_from_memory(tmp_path: Path, source: Source) -> None:
    cache = BlockCache(tmp_path / "cache", 64 * KIB - 1)
    assert source.ask(cache, 1).readonly
    assert stored(cache) == {}


FILL = """
import random, sys
from pathlib import Path
import xxhash
from shoal.storage.cache import BlockCache

folder, cap_bytes, log, *order = sys.argv[1:]
cache = BlockCache(Path(folder), int(cap_bytes))
sys.stdin.read()
for number in map(int, order):
    data = random.Random(number).randbytes(65536)
    def fetch():
        with open(log, "a") as file:
            file.write(f"{number}\\n")
        return data
    assert cache.get(f"print/shard-0/{number}", xxhash.xxh3_64_hexdigest(data), fetch) == data
"""


def fill_together(cache: BlockCache, log: Path, orders: list[list[int]], look: Callable[[], None]) -> None:
    """Ask for blocks in some order in a process each, all at once, and look at the folder until they are done."""
    words = [str(cache.folder), str(cache.cap_bytes), str(log)]
    processes = [
        subprocess.Popen([sys.executable, "-c", FILL, *words, *map(str, order)], stdin=subprocess.PIPE)
        for order in orders
    ]
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        while any(process.poll() is None for process in processes):
            look()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * len(orders)


@pytest.mark.parametrize("mixed", [False, True])
def test_processes_fetch_no_block_twice(cache: BlockCache, tmp_path: Path, mixed: bool) -> None:
    orders = [random.Random(seed if mixed else 0).sample(range(60), 60) for seed in range(2)]
    fill_together(cache, tmp_path / "log", orders, look=lambda: None)
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(60))


def test_threads_fetch_no_block_twice(cache: BlockCache, source: Source) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: source.ask(cache, number % 10), range(80)))
    assert sorted(source.fetched) == list(range(10))


def test_processes_under_a_small_cap_get_the_right_bytes(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "cache", 8 * 64 * KIB)
    seen = []

    def look() -> None:
        with suppress(FileNotFoundError):  # evicted between two looks at it
            seen.append(len({name.removesuffix(".filling") for name in stored(cache)}))

    fill_together(cache, tmp_path / "log", [random.Random(seed).choices(range(30), k=200) for seed in range(2)], look)
    # One look at many files is not of one instant: it may see what went before and what came for it.
    assert max(seen) <= 8 + 2
    assert sum(stored(cache).values()) <= cache.cap_bytes


def test_an_evicted_block_stays_readable_where_it_is_mapped(tmp_path: Path, source: Source) -> None:
    cache = BlockCache(tmp_path / "cache", 2 * 64 * KIB)
    kept = source.ask(cache, 0)
    other = BlockCache(cache.folder, cache.cap_bytes)
    for number in range(1, 9):
        source.ask(other, number)
    assert "0" not in stored(cache)
    assert kept == block(0)


KILLED = """
import os, random, signal, sys
from pathlib import Path
import xxhash
from shoal.storage import cache
from shoal.storage.cache import BlockCache

def die(*words): os.kill(os.getpid(), signal.SIGKILL)

data = random.Random(0).randbytes(65536)
def fetch():
    if sys.argv[2] == "fetching": die()
    return data
if sys.argv[2] == "writing":
    cache.os.fsync = die
if sys.argv[2] == "renaming":
    cache.Path.replace = die
if sys.argv[2] == "counting":
    Path.open = lambda path, *words, **more: die() if path.name.endswith(".filling") else open(path, *words, **more)
BlockCache(Path(sys.argv[1]), 3 * 65536).get(f"print/shard-0/{sys.argv[3]}", xxhash.xxh3_64_hexdigest(data), fetch)
"""


@pytest.mark.parametrize("when", ["fetching", "writing", "renaming", "counting"])
def test_what_a_killed_process_leaves_is_never_read_and_its_room_comes_back(
    tmp_path: Path, source: Source, when: str
) -> None:
    cache = BlockCache(tmp_path / "cache", 3 * 64 * KIB)
    for number in (11, 12, 13, 14):  # more than there is room for
        words = [str(cache.folder), when, str(number)]
        done = subprocess.run([sys.executable, "-c", KILLED, *words], check=False, timeout=60)
        assert done.returncode == -signal.SIGKILL
    assert all(name.endswith(".filling") for name in stored(cache))
    assert sum(stored(cache).values()) <= cache.cap_bytes
    for number in (2, 3, 4, 11, 12, 11, 12):
        source.ask(cache, number)
    assert source.fetched == [2, 3, 4, 11, 12]
    assert stored(cache) == {"4": 64 * KIB, "11": 64 * KIB, "12": 64 * KIB}


FULL = """
import random, resource, sys, logging
from pathlib import Path
import xxhash
from shoal.storage.cache import BlockCache
logging.basicConfig(format="%(message)s")
resource.setrlimit(resource.RLIMIT_FSIZE, (65536 + 100, 65536 + 100))
cache = BlockCache(Path(sys.argv[1]), 1 << 30)
fetched = []
for _ in range(2):
    for number, size in enumerate((65536, 65536 * 2, 65536 * 3)):
        data = random.Random(number).randbytes(size)
        digest = xxhash.xxh3_64_hexdigest(data)
        assert cache.get(f"a/b/{number}", digest, lambda: fetched.append(number) or data) == data
print(fetched)
"""


def test_where_a_file_cannot_be_written_memory_serves_with_one_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[0, 1, 2, 1, 2]\n"
    assert done.stderr.count("\n") == 1
    assert "cannot be written (File too large); blocks are fetched again" in done.stderr
    assert stored(BlockCache(tmp_path, 0)) == {"0": 65536}


def test_a_full_disk(tmp_path: Path, source: Source, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "none", folder], capture_output=True, check=False
    ).returncode  # fmt: skip
    if not mounted:
        pytest.skip("needs the right to mount a small disk")
    try:
        cache = BlockCache(folder / "cache", 1 << 30)
        with caplog.at_level(logging.WARNING):
            for number in [*range(12), *range(12)]:
                source.ask(cache, number)
        assert [record.message.count("No space left on device") for record in caplog.records] == [1]
        assert set(stored(cache)) == {str(number) for number in range(len(stored(cache)))}
        assert 3 <= len(stored(cache)) <= 6
        assert len(source.fetched) == 24 - len(stored(cache))
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_folder_that_cannot_be_made_is_no_error(
    tmp_path: Path, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = BlockCache(tmp_path / "file/cache", 1 << 30)
    for number in (1, 2, 1):
        source.ask(cache, number)
    assert source.fetched == [1, 2, 1]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("total", ["", "nonsense", "9999999999"])
def test_a_wrong_total_is_put_right_by_a_look_at_the_files(tmp_path: Path, source: Source, total: str) -> None:
    cache = BlockCache(tmp_path / "cache", 10 * 64 * KIB)
    source.ask(cache, 1)
    (cache.folder / ".bytes").write_text(total)
    source.ask(cache, 2)
    assert stored(cache) == {"1": 64 * KIB, "2": 64 * KIB}
    assert (cache.folder / ".bytes").read_text() == str(2 * 64 * KIB)


def test_a_body_that_is_announced_too_short_is_caught_by_the_checksum(s3: S3, tmp_path: Path) -> None:
    """Arrow returns memory of the length asked for then; nothing below the cache can notice."""
    file, data = s3.root / "file", block(7)
    file.write_bytes(data)
    cache = BlockCache(tmp_path / "cache", 1 << 30)
    s3.endpoint.faults.append(Fault(2, "GET", cut="unnoticed"))
    with patience(Patience(first_sec=0.001)):
        found = cache.get("a/b/0", xxhash.xxh3_64_hexdigest(data), lambda: file.read_range(0, len(data)))
    assert found == data


def test_the_environment_names_folder_and_cap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SHOAL_CACHE", raising=False)
    monkeypatch.delenv("SHOAL_CACHE_BYTES", raising=False)
    found = BlockCache.of_this_node()
    assert found.folder == tmp_path / ".cache/shoal/blocks"
    assert 0 < found.cap_bytes <= 50 << 30
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "here"))
    for text, cap_bytes in (("12345", 12345), ("20GiB", 20 << 30), ("1.5 t", 3 << 39), ("10kb", 10 << 10)):
        monkeypatch.setenv("SHOAL_CACHE_BYTES", text)
        assert BlockCache.of_this_node().cap_bytes == cap_bytes
    assert BlockCache.of_this_node().folder == tmp_path / "here/blocks"
    monkeypatch.setenv("SHOAL_CACHE_BYTES", "much")
    with pytest.raises(ConfigError, match="SHOAL_CACHE_BYTES=much is no number of bytes; write it like 20GiB"):
        BlockCache.of_this_node()
