"""Mend a damaged data set: get again what is damaged, compare it with the manifest, put it in place by a rename."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import groupby
from pathlib import Path

import numpy as np

from shoal.data.block_buffer import BlockBuffer, EncodedBuffer, RawBuffer, images_of
from shoal.data.importers.record import RECORD_NAME, read_record
from shoal.data.labels import hash_labels, write_labels
from shoal.data.manifest import MANIFEST_NAME, LabelsFile, Manifest, Shard, load_manifest
from shoal.data.origin import Origin, is_data_set, open_origin
from shoal.data.shard_file import ShardFile
from shoal.data.shard_writer import ShardWriter
from shoal.data.verify import BytesDone, Problem, compare, record_problems, shard_problems
from shoal.data.workshop import put, workshop
from shoal.errors import DataError
from shoal.storage.location import Location


@dataclass
class Repair:
    """What a repair came to.

    Attributes:
        mended: for each file that is right again, what was done.
        left: for each file that is as damaged as before, why.
    """

    mended: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def repair(
    place: str | Path | Location, source: str | Path | Location | None = None, *, progress: BytesDone | None = None
) -> Repair:
    """Mend what ``verify`` finds wrong with the data set at ``place``, and say what was done; nothing, if it is whole.

    ``source`` is another copy of the data set, or what it was imported from (None: from where its record says). Of a
    damaged shard only the damaged blocks are asked for, where it can be read. A file takes its place when it is what
    the manifest lists, in one step: others may read the data set meanwhile, and a repair that is killed can be
    repeated. A file that cannot be had is left as it is, and the others are mended. A manifest can be had from a copy.

    ``progress`` is that of ``verify``, which comes first.

    Raises:
        DataError: no data set, no such source, one of other data, or (for a manifest) none that is a copy.
        StorageError: an object store refuses, or does not answer.
    """
    location = Location.parse(place)
    given = None if source is None else Location.parse(source)
    if given is not None and _same(given, location):
        raise DataError(f"--from {given} is the damaged data set itself; give a copy, or what it was imported from")
    manifest, is_of_copy = _manifest(location, given)

    @cache
    def origin() -> Origin:
        return open_origin(location, manifest, given)

    if given is not None:
        origin()  # refused before every byte is read
    problems = compare(location, manifest, progress=progress)
    damaged = {problem.file for problem in problems}
    if is_of_copy and damaged.issuperset(shard.path for shard in manifest.shards):
        raise DataError(
            f"no shard of {location} is one of {given}, so its manifest cannot come from there; "
            f"delete {location}, and copy {given} as a whole"
        )
    return _Work(location, manifest, origin).mend(damaged, is_of_copy)


def _manifest(location: Location, source: Location | None) -> tuple[Manifest, bool]:
    """Return the manifest, and whether it is that of the copy, since the data set's own cannot be used."""
    try:
        return load_manifest(location), False
    except DataError as error:
        if source is None or not location.exists() or not is_data_set(source):
            raise DataError(f"{error}, or repair it --from a copy of the data set") from None
        return load_manifest(source), True


class _Work:
    """The repair of one data set. ``_manifest`` follows what is mended: another Arrow may lay rows out differently."""

    def __init__(self, location: Location, manifest: Manifest, origin: Callable[[], Origin]) -> None:
        self._location = location
        self._manifest = manifest
        self._origin = origin
        self._done = Repair()

    def mend(self, damaged: set[str], is_of_copy: bool) -> Repair:
        """Mend the files of these names, and the manifest and the record where they need it."""
        listed = self._manifest
        with workshop(self._location) as folder:
            first = first_block = 0
            for shard in listed.shards:
                if shard.path in damaged:
                    self._try(shard.path, partial(self._mend_shard, shard, first, first_block, folder))
                first, first_block = first + shard.rows, first_block + len(shard.blocks)
            if listed.labels is not None and listed.labels.path in damaged:
                self._try(listed.labels.path, partial(self._mend_labels, listed.labels, folder))
        for problem in record_problems(self._location, listed):
            if problem.file == RECORD_NAME:
                self._try(RECORD_NAME, partial(self._mend_record, problem))
        if source := self._recorded_source():
            self._manifest = self._manifest.model_copy(update={"source": source})
            self._done.mended[MANIFEST_NAME] = f"names the source '{source}' again"
        if is_of_copy:
            self._done.mended[MANIFEST_NAME] = f"copied from {self._origin().name}"
        if is_of_copy or self._manifest != listed:
            (self._location / MANIFEST_NAME).write_bytes(self._manifest.to_json().encode())
        return self._done

    def _try(self, file: str, mend: Callable[[], str]) -> None:
        try:
            self._done.mended[file] = mend()
        except DataError as error:
            self._done.left[file] = str(error)

    def _mend_shard(self, shard: Shard, first: int, first_block: int, folder: Path) -> str:
        with ExitStack() as stack:
            own = self._own(shard)
            if own is not None:
                stack.callback(own.close)
            wrong = set(range(len(shard.blocks))) if own is None else _wrong_blocks(own)
            if len(wrong) == len(shard.blocks) and self._fetched(shard, first, folder):
                put(folder / shard.path, self._location / shard.path)
                return f"copied from {self._origin().name}"
            made = self._rebuilt(shard, first_block, folder, own, wrong)
        problems = [] if made is None else self._problems(made, first, folder)
        if made is None or problems:
            raise DataError(self._other("rows", problems[0].what if problems else "it has none"))
        put(folder / made.path, self._location / shard.path)
        if (made.bytes, made.xxh3) != (shard.bytes, shard.xxh3):
            entry = made.model_copy(update={"path": shard.path})
            shards = tuple(entry if one is shard else one for one in self._manifest.shards)
            self._manifest = self._manifest.model_copy(update={"shards": shards})
        if not wrong:
            return "written again from its own blocks, which are right"
        return f"{len(wrong):,} of its {len(shard.blocks):,} blocks had again from {self._origin().name}"

    def _mend_labels(self, entry: LabelsFile, folder: Path) -> str:
        labels = self._origin().labels()
        if len(labels) != self._manifest.num_rows or hash_labels(labels) != entry.rows_xxh3:
            raise DataError(self._other("labels", f"its {len(labels):,} are not the {self._manifest.num_rows:,}"))
        made = write_labels(folder, labels)
        put(folder / made.path, self._location / entry.path)
        self._manifest = self._manifest.model_copy(update={"labels": made.model_copy(update={"path": entry.path})})
        return f"had again from {self._origin().name}"

    def _mend_record(self, problem: Problem) -> str:
        record = self._origin().record()
        if record is None:
            raise DataError(f"{problem.what}, and mended from a copy")
        (self._location / RECORD_NAME).write_bytes(record)
        return f"copied from {self._origin().name}"

    def _recorded_source(self) -> str | None:
        """Return what the record calls the source where the manifest has it wrong."""
        try:
            record = read_record(self._location)
        except DataError:
            return None
        return None if record is None or record["source"] == self._manifest.source else str(record["source"])

    def _own(self, shard: Shard) -> ShardFile | None:
        try:
            return ShardFile(self._location, shard, self._manifest)
        except DataError:
            return None

    def _fetched(self, shard: Shard, first: int, folder: Path) -> bool:
        """Copy a shard as a whole, if the origin has one that is right."""
        if not self._origin().fetch(shard.bytes, shard.xxh3, folder / shard.path):
            return False
        if not self._problems(shard, first, folder):
            return True
        (folder / shard.path).unlink()
        return False

    def _problems(self, shard: Shard, first: int, folder: Path) -> list[Problem]:
        return shard_problems(Location.parse(folder), self._manifest, shard, first)

    def _rebuilt(
        self, shard: Shard, first_block: int, folder: Path, own: ShardFile | None, wrong: set[int]
    ) -> Shard | None:
        """Write a shard from its own blocks and, in the place of wrong ones, the origin's; None without any row."""
        manifest = self._manifest
        buffer: BlockBuffer = EncodedBuffer(manifest.row_bytes)
        if manifest.encoding == "raw":
            buffer = RawBuffer(manifest.rows_per_block, manifest.row_bytes)
        with ShardWriter(
            folder,
            f"of-block-{first_block}",
            shard.split,
            buffer,
            rows_per_block=manifest.rows_per_block,
            shard_bytes=sys.maxsize,
            labelled=False,
        ) as writer:
            for is_wrong, run in groupby(range(len(shard.blocks)), wrong.__contains__):
                blocks = list(run)
                if is_wrong:
                    pieces = self._origin().images(range(first_block + blocks[0], first_block + blocks[-1] + 1))
                else:
                    assert own is not None
                    pieces = (images_of(own.block(block)) for block in blocks)
                for images in pieces:
                    writer.add(images, np.full(len(images), -1, np.int32))
        if not writer.shards:
            return None
        # The blocks that it is to have, so that it is compared with them.
        return writer.shards[0].model_copy(update={"blocks": shard.blocks, "rows": shard.rows})

    def _other(self, what: str, difference: str) -> str:
        name, excuse = self._origin().name, self._origin().excuse
        return f"{name} does not give the {what} that were imported ({difference}): {excuse}; nothing of it was used"


def _wrong_blocks(file: ShardFile) -> set[int]:
    wrong = set()
    for index in range(len(file.shard.blocks)):
        try:
            file.block(index)
        except DataError:
            wrong.add(index)
    return wrong


def _same(one: Location, other: Location) -> bool:
    if one.local is None or other.local is None:
        return one == other
    return one.local.resolve() == other.local.resolve()
