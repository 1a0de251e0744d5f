"""Read every byte of a data set and say exactly what is wrong with it."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from shoal.data.decoder import DecodeError, PillowDecoder
from shoal.data.importers.record import RECORD_NAME, read_record
from shoal.data.labels import hash_labels, read_labels
from shoal.data.manifest import MANIFEST_NAME, Manifest, Shard, load_manifest, parse_manifest
from shoal.data.second_look import until_right
from shoal.data.shard import BlockRows, length_problem
from shoal.data.shard_file import ShardFile
from shoal.errors import DataError, MissingError
from shoal.storage.location import Location

MOST_THREADS = 4
REMOTE_THREADS = 8
"""Most of their time they wait for the store."""

BytesDone = Callable[[int, int], None]
"""Called with the number of bytes done so far, and of all files that the manifest lists; by one thread at a time."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the file, the block in it and the global rows (first, last) it takes away, if known."""

    file: str
    what: str
    block: int | None = None
    rows: tuple[int, int] | None = None

    def __str__(self) -> str:
        place = self.file
        if self.block is not None:
            place += f", block {self.block}"
        if self.rows is not None and self.rows[0] == self.rows[1]:
            place += f", row {self.rows[0]:,}"
        elif self.rows is not None:
            place += f", rows {self.rows[0]:,} to {self.rows[1]:,}"
        return f"{place}: {self.what}"


def verify(place: str | Path | Location, *, decode: bool = False, progress: BytesDone | None = None) -> list[Problem]:
    """Compare the data set at ``place`` with all that its manifest promises; an empty list means it is whole.

    Checks sizes, file checksums, every block, and the labels against the histograms; damage does not stop it. With
    ``decode``, each file of an encoded data set must also become a row of its shape. Several shards are read at a
    time, from an object store past the node's cache. Memory: a block for each, and the labels.

    Raises:
        DataError: there is no manifest that can be read.
        StorageError: an object store refuses, or does not answer.
    """
    location = Location.parse(place)
    manifest = parse_manifest(location)
    problems = []
    try:
        load_manifest(location)
    except DataError as error:
        problems.append(Problem(MANIFEST_NAME, str(error)))
    problems += record_problems(location, manifest)
    return problems + compare(location, manifest, decode=decode, progress=progress)


def compare(
    location: Location, manifest: Manifest, *, decode: bool = False, progress: BytesDone | None = None
) -> list[Problem]:
    """Compare the shards and the labels at ``location`` with a manifest: see ``verify``."""
    look = _Look(location, manifest, decode, progress)
    threads = REMOTE_THREADS if location.local is None else min(MOST_THREADS, len(os.sched_getaffinity(0)))
    firsts = np.cumsum([0] + [shard.rows for shard in manifest.shards]).tolist()
    with ThreadPoolExecutor(threads, "shoal-verify") as pool:
        looks = [pool.submit(look.at_shard, *each) for each in zip(manifest.shards, firsts, strict=False)]
        try:
            problems = [problem for one in looks for problem in one.result()]
        except BaseException:
            look.stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    return problems + look.at_labels()


def shard_problems(
    folder: Location, manifest: Manifest, shard: Shard, first: int, *, decode: bool = False
) -> list[Problem]:
    """Return what is wrong with one shard in ``folder``, whose first global row is ``first``."""
    return _Look(folder, manifest, decode, None).at_shard(shard, first)


class _Look:
    """One look at a data set; ``stopped`` ends it in the middle."""

    def __init__(self, location: Location, manifest: Manifest, decode: bool, progress: BytesDone | None) -> None:
        self.stopped = Event()
        self._location = location
        self._manifest = manifest
        self._decode = decode and manifest.encoding == "encoded"
        self._progress = progress
        self._done, self._total = 0, sum(manifest.file_sizes().values())
        self._lock = Lock()

    def at_shard(self, shard: Shard, first: int) -> list[Problem]:
        seen = 0

        def look(again: bool) -> list[Problem]:
            nonlocal seen
            problems = []
            for problem, num_bytes in self._at_shard(shard, first):
                if self.stopped.is_set():
                    return []
                if not again:
                    seen += num_bytes
                    self._count(num_bytes)
                if problem is not None:
                    problems.append(problem)
            if problems:
                raise _WrongError(problems)
            return problems

        try:
            return until_right(look, remote=self._location.local is None)
        except _WrongError as wrong:
            return wrong.problems
        finally:
            self._count(shard.bytes - seen)

    def at_labels(self) -> list[Problem]:
        entry = self._manifest.labels
        if entry is None:
            return []
        try:
            if problem := length_problem((self._location / entry.path).size(), entry.bytes):
                return [Problem(entry.path, problem)]
            labels = read_labels(self._location, self._manifest)
        except MissingError:
            return [Problem(entry.path, "is missing")]
        except DataError as error:
            return [Problem(entry.path, str(error))]
        finally:
            self._count(entry.bytes)
        return list(_label_problems(self._manifest, labels))

    def _at_shard(self, shard: Shard, first: int) -> Iterator[tuple[Problem | None, int]]:
        """Yield what is wrong with a shard, and how many bytes were read since."""
        everything = (first, first + shard.rows - 1)
        try:
            file = ShardFile(self._location, shard, self._manifest)
        except DataError as error:
            yield Problem(shard.path, str(error), rows=everything), 0
            return
        digest, are_right = xxhash.xxh3_64(), True
        try:
            for index, data in file.pieces():
                digest.update(data)
                yield None, len(data)
                if index is None:
                    continue
                rows = shard.blocks[index].rows
                try:
                    column = file.column(index, data)
                except DataError as error:
                    are_right = False
                    yield Problem(shard.path, str(error), index, (first, first + rows - 1)), 0
                else:
                    for problem in self._undecodable(column, shard, index, first):
                        yield problem, 0
                first += rows
        except DataError as error:
            yield Problem(shard.path, str(error), rows=everything), 0
            return
        finally:
            file.close()
        if are_right and digest.hexdigest() != shard.xxh3:
            yield Problem(shard.path, "the rows are right, but bytes between the blocks were changed"), 0

    def _undecodable(self, column: pa.Array, shard: Shard, index: int, first: int) -> Iterator[Problem]:
        if self._decode:
            rows, out = BlockRows.of_column(column), np.empty(self._manifest.shape, np.uint8)
            for row in range(len(column)):
                try:
                    PillowDecoder().decode(rows.file(row), out)
                except DecodeError as error:
                    what = f"the file is the one that was imported, but {error}"
                    yield Problem(shard.path, what, index, (first + row, first + row))

    def _count(self, num_bytes: int) -> None:
        if self._progress is not None and num_bytes:
            with self._lock:
                self._done += num_bytes
                self._progress(self._done, self._total)


class _WrongError(DataError):
    """A shard that has to be looked at once more."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems)
        self.problems = list(problems)


def record_problems(location: Location, manifest: Manifest) -> list[Problem]:
    """Return what is wrong with the record of the import, and with the one thing that it alone can tell."""
    try:
        record = read_record(location)
    except DataError as error:
        return [Problem(RECORD_NAME, str(error))]
    if record is not None and record["source"] != manifest.source:  # which no fingerprint covers
        return [Problem(MANIFEST_NAME, f"names the source '{manifest.source}', and {RECORD_NAME} '{record['source']}'")]
    return []


def _label_problems(manifest: Manifest, labels: NDArray[np.int32]) -> Iterator[Problem]:
    """Yield where the labels contradict the manifest although their file is the one it lists."""
    assert manifest.labels is not None
    name = manifest.labels.path
    if len(labels) != manifest.num_rows or hash_labels(labels) != manifest.labels.rows_xxh3:
        yield Problem(name, f"its {len(labels):,} labels are not the {manifest.num_rows:,} that the manifest lists")
        return
    first = 0
    for index, block in enumerate(block for shard in manifest.shards for block in shard.blocks):
        classes, counts = np.unique(labels[first : first + block.rows], return_counts=True)
        found = {int(c): int(n) for c, n in zip(classes, counts, strict=True) if c >= 0}
        if found != block.classes:
            rows = (first, first + block.rows - 1)
            yield Problem(name, "the labels do not add up to the manifest's class histogram", index, rows)
        first += block.rows
