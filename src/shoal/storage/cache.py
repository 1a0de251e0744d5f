"""One cache of blocks per node: files that all its processes map, each fetched once."""

import logging
import mmap
import os
import random
import re
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path

import xxhash

from shoal.errors import ConfigError, StorageError
from shoal.storage.locks import held, tried
from shoal.storage.node import node_folder
from shoal.storage.retry import current
from shoal.storage.space import FILLING, LOCKS, Space

Buffer = bytes | bytearray | memoryview

MOST_BYTES_BY_DEFAULT = 50 << 30
FETCHES = 3
"""Of a block that comes with a wrong checksum, before it is believed to be damaged at its source."""
NUM_LOCKS = 1024
"""Lock files: few enough to be kept, and enough that two blocks seldom wait for each other."""
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

_log = logging.getLogger("shoal.storage")


class ChecksumError(StorageError):
    """Bytes that came several times over and were never those that were once written."""


class BlockCache:
    """Blocks of data sets from afar, as files of this node.

    A file appears under its name when its bytes are whole, on the disk and of the right checksum, and each process
    checks it once more when it maps it for the first time; one with a wrong byte is fetched again. Where no file can be
    written, blocks are served from memory, with one warning.

    Args:
        folder: on this node's own disk, for all its processes and data sets; made at the first block.
        cap_bytes: what its files may hold together; the least recently used go first.
    """

    def __init__(self, folder: Path, cap_bytes: int) -> None:
        self.folder = folder
        self.cap_bytes = cap_bytes
        self._space = Space(folder, cap_bytes, self._abandoned)
        self._checked: dict[str, tuple[int, int]] = {}
        self._warned = False

    @classmethod
    def of_this_node(cls) -> "BlockCache":
        """Return the cache that the environment names.

        ``SHOAL_CACHE`` is the folder (``~/.cache/shoal``) in which its own, ``blocks``, lies; ``SHOAL_CACHE_BYTES`` its
        cap, such as 20GiB (50 GiB, or half of what is free if that is less).

        Raises:
            ConfigError: ``SHOAL_CACHE_BYTES`` is no number of bytes.
        """
        folder = node_folder() / "blocks"
        given = os.environ.get("SHOAL_CACHE_BYTES")
        if given:
            return cls(folder, _bytes(given))
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free + cls(folder, 0)._space.used_bytes()
        return cls(folder, min(MOST_BYTES_BY_DEFAULT, free // 2))

    def get(self, key: str, xxh3: str, fetch: Callable[[], Buffer]) -> memoryview:
        """Return the bytes of a block, read-only: a map of its file, or memory where there can be none.

        A map outlives the eviction of its file. Threads and processes may ask at once; one of them fetches.

        Args:
            key: the file's relative path, ``<fingerprint>/<shard>/<block>``.
            xxh3: xxh3_64 of the bytes, in hex.
            fetch: returns the bytes from their source.

        Raises:
            ChecksumError: `FETCHES` times in a row, what was fetched has another checksum.
            Exception: whatever ``fetch`` raises.
        """
        found = self._map(key, xxh3)
        if found is not None:
            return found
        with ExitStack() as alone:
            try:
                alone.enter_context(held(self._lock(key)))
            except OSError as error:
                self._warn(error)
            found = self._map(key, xxh3)  # filled by whom we waited for
            if found is not None:
                return found
            data = _fetched(key, xxh3, fetch)
            try:
                stored = self._store(key, xxh3, data)
            except OSError as error:
                self._warn(error)
                stored = None
            return memoryview(data).toreadonly() if stored is None else stored

    def _map(self, key: str, xxh3: str) -> memoryview | None:
        """Return a block's file if it is there and right. Takes no lock: a file never changes under its name."""
        try:
            file = os.open(self.folder / key, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            status = os.fstat(file)
            if status.st_size == 0:
                return None
            mapped = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
            with suppress(OSError):  # advice, and the order of eviction; neither is worth a block
                mapped.madvise(mmap.MADV_WILLNEED)
                # The time of use goes into atime, which mounts may not keep by themselves; mtime tells fillings apart.
                os.utime(file, ns=(time.time_ns(), status.st_mtime_ns))
        except OSError:
            return None
        finally:
            os.close(file)
        identity = (status.st_ino, status.st_mtime_ns)
        if self._checked.get(key) != identity:
            if xxhash.xxh3_64_hexdigest(mapped) != xxh3:
                return None
            self._checked[key] = identity
        return memoryview(mapped)

    def _store(self, key: str, xxh3: str, data: Buffer) -> memoryview | None:
        """Write a block's file and return its map; None if there is no room below the cap."""
        path = self.folder / key
        path.unlink(missing_ok=True)  # there is one only if its bytes are wrong
        filling = path.with_name(path.name + FILLING)
        try:
            if not self._space.reserve(filling, memoryview(data).nbytes):
                return None
            with filling.open("r+b") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            filling.replace(path)
        except BaseException:
            with suppress(OSError):
                filling.unlink()
            raise
        return self._map(key, xxh3)

    def _lock(self, key: str) -> Path:
        return self.folder / LOCKS / f"{xxhash.xxh3_64_intdigest(key.encode()) % NUM_LOCKS:04}"

    def _abandoned(self, filling: Path) -> AbstractContextManager[bool]:
        return tried(self._lock(str(filling.relative_to(self.folder)).removesuffix(FILLING)))

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                "the block cache %s cannot be written (%s); blocks are fetched again whenever they are needed."
                " Make room, or set SHOAL_CACHE to another folder",
                self.folder,
                error.strerror or error,
            )


def _fetched(key: str, xxh3: str, fetch: Callable[[], Buffer]) -> Buffer:
    wait = current().first_sec
    for left in reversed(range(FETCHES)):
        data = fetch()
        digest = xxhash.xxh3_64_hexdigest(data)
        if digest == xxh3:
            return data
        if left:
            time.sleep(wait * random.uniform(0.5, 1.5))
            wait *= 2
    raise ChecksumError(
        f"block {key}: its bytes have xxh3 {digest} and should have {xxh3}, {FETCHES} times in a row; it is"
        " damaged where it is stored. `shoal data verify` finds what else is"
    )


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise ConfigError(f"SHOAL_CACHE_BYTES={text} is no number of bytes; write it like 20GiB or 500000000")
    return int(float(match[1]) * UNITS[match[2].upper()])
