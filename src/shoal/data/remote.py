"""Blocks of an object store: one range request each, once per node."""

import struct
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shoal.data.blocks import BlockTable
from shoal.data.manifest import Manifest, Shard
from shoal.data.shard import BlockRows, length_problem, rows_of, shard_schema
from shoal.errors import DataError, MissingError, StorageError
from shoal.storage.cache import BlockCache
from shoal.storage.location import Location

Spans = NDArray[np.int64]

MOST_IDLE_FILES = 256

_MAGIC = b"ARROW1"
_USUAL_FOOTER_BYTES = 1024
_FIELDS_START, _RECORD_BATCHES = 4, 3  # of a vtable, after two sizes; the fourth field of Footer
_BLOCK = np.dtype([("offset", "<i8"), ("metadata", "<i4"), ("padding", "<i4"), ("body", "<i8")])


class RemoteShards:
    """Blocks of a data set on an object store, through the node's cache. What was fetched is checked there as well."""

    remote = True

    def __init__(self, location: Location, manifest: Manifest, table: BlockTable, cache: BlockCache) -> None:
        self._location = location
        self._manifest = manifest
        self._table = table
        self._cache = cache
        self._schema = shard_schema(manifest.row_bytes, manifest.encoding)
        self._spans: dict[str, Spans] = {}
        self._first: dict[str, Lock] = {}
        self._idle: defaultdict[str, list[pa.NativeFile]] = defaultdict(list)
        self._lock = Lock()

    def read(self, block: int, *, again: bool) -> BlockRows:
        """Return the rows of a block as a map of the cache's file: see BlockSource. Raises StorageError too."""
        shard, entry = self._table.entries(block)
        if again:
            self._forget(shard)
        key = f"{self._manifest.fingerprint}/{shard.path}/{self._table.index[block]}"
        payload = self._cache.get(key, entry.xxh3, lambda: self._fetch(block))
        return BlockRows.of_payload(payload, entry.rows, self._manifest.encoding)

    def _fetch(self, block: int) -> bytes:
        shard, entry = self._table.entries(block)
        with self._opened(shard) as file:
            start, num_bytes = self._spans[shard.path][self._table.index[block]]
            message = file.read_at(int(num_bytes), int(start))
        try:
            column = pa.ipc.read_record_batch(pa.py_buffer(message), self._schema).column(0)
        except (OSError, EOFError, pa.ArrowException) as error:
            raise DataError(f"is not readable as an Arrow record batch: {error}") from None
        rows = rows_of(column, entry)
        if problem := rows.problem(entry):
            raise DataError(problem)
        return b"".join(piece.data for piece in rows.payload())

    @contextmanager
    def _opened(self, shard: Shard) -> Iterator[pa.NativeFile]:
        """Yield the shard's object, its size and layout known. To open one costs a request: the file is kept."""
        with self._lock:
            idle = self._idle[shard.path]
            file = idle.pop() if idle else None
        if file is None:
            file = self._open(shard)
        yield file
        with self._lock:
            if sum(map(len, self._idle.values())) >= MOST_IDLE_FILES:
                self._idle.clear()
            self._idle[shard.path].append(file)

    def _open(self, shard: Shard) -> pa.NativeFile:
        try:
            file = (self._location / shard.path).open_input()
        except MissingError:
            raise DataError("lies in an object that is missing") from None
        if problem := length_problem(file.size(), shard.bytes):
            raise DataError(f"lies in an object that {problem}")
        with self._lock:
            first = self._first.setdefault(shard.path, Lock())
        with first:
            if shard.path not in self._spans:
                try:
                    self._spans[shard.path] = read_spans(file, shard)
                except DataError as error:
                    raise DataError(f"lies in an object that {error}") from None
        return file

    def _forget(self, shard: Shard) -> None:
        """Drop what is known of an object, which may be another one by now."""
        with self._lock:
            self._idle.pop(shard.path, None)
            self._spans.pop(shard.path, None)


def read_spans(file: pa.NativeFile, shard: Shard) -> Spans:
    """Return where the record batches of an Arrow file are: first byte and length, int64 [num_blocks, 2].

    Read from the footer, which pyarrow keeps to itself, so that a block is one request and not two. The layout is that
    of the Arrow columnar format, "IPC File Format", and of FlatBuffers.

    Raises:
        DataError: another layout; the end of a sentence about the file.
    """
    end = struct.calcsize("<i") + len(_MAGIC)
    tail_bytes = min(shard.bytes, _USUAL_FOOTER_BYTES + 32 * len(shard.blocks))
    try:
        tail = file.read_at(tail_bytes, shard.bytes - tail_bytes)
        num_bytes, magic = struct.unpack(f"<i{len(_MAGIC)}s", tail[-end:])
        if magic != _MAGIC or not 0 < num_bytes <= shard.bytes - end:
            raise ValueError("it does not end as one")
        if num_bytes > len(tail) - end:
            tail = file.read_at(num_bytes + end, shard.bytes - num_bytes - end)
        spans = _record_batches(tail[-end - num_bytes : -end])
    except StorageError:  # a ValueError too
        raise
    except (ValueError, struct.error) as error:
        raise DataError(f"is not readable as an Arrow file: {error}") from None
    if len(spans) != len(shard.blocks):
        raise DataError("does not hold the blocks that the manifest lists")
    if spans.min() <= 0 or spans.max() > shard.bytes or spans.sum(axis=1).max() > shard.bytes:
        raise DataError("is not readable as an Arrow file: its footer points outside")
    return spans


def _record_batches(footer: bytes) -> Spans:
    """Return field ``recordBatches`` of the FlatBuffers table ``Footer``: structs of an offset and two lengths."""
    (table,) = struct.unpack_from("<I", footer)
    (to_fields,) = struct.unpack_from("<i", footer, table)
    (in_table,) = struct.unpack_from("<H", footer, table - to_fields + _FIELDS_START + 2 * _RECORD_BATCHES)
    vector = table + in_table
    vector += struct.unpack_from("<I", footer, vector)[0]
    (num,) = struct.unpack_from("<I", footer, vector)
    blocks = np.frombuffer(footer, _BLOCK, num, vector + 4)
    return np.stack([blocks["offset"], blocks["metadata"] + blocks["body"]], axis=1)
