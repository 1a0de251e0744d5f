"""Where the rows of a damaged data set can be had again: a copy of it, or the source that it was imported from."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shoal.data.block_buffer import Images, images_of
from shoal.data.blocks import BlockTable
from shoal.data.importers import IMPORTERS, open_source
from shoal.data.importers.record import RECORD_NAME, identify, read_record
from shoal.data.importers.reread import reread
from shoal.data.importers.splitting import Shares
from shoal.data.labels import read_labels
from shoal.data.manifest import MANIFEST_NAME, Manifest, load_manifest
from shoal.data.second_look import until_right
from shoal.data.shard_file import ShardFile
from shoal.errors import DataError, MissingError, StorageError
from shoal.storage.location import Location


class Origin(Protocol):
    """Where rows can be had again. What it gives is believed only when its checksums are those of the manifest.

    Attributes:
        name: what to call it in a message.
    """

    name: str

    @property
    def excuse(self) -> str:
        """Return why what it gives may be wrong, as the end of a sentence."""

    def images(self, blocks: range) -> Iterator[Images]:
        """Yield the rows of neighbouring blocks of one split, by their index in the data set. Raises DataError."""

    def labels(self) -> NDArray[np.int32]:
        """Return the labels of all rows. Raises DataError."""

    def fetch(self, num_bytes: int, xxh3: str, target: Path) -> bool:
        """Copy the shard that should have this size and checksum, and say whether there is one."""

    def record(self) -> bytes | None:
        """Return the content of a record of the import that is right, if there is one."""


def open_origin(location: Location, manifest: Manifest, source: Location | None) -> Origin:
    """Open a copy of the data set at ``location``, or what it was imported from (None: where its record says that was).

    Raises DataError for a copy of another data set, and where the record says too little.
    """
    if source is not None and is_data_set(source):
        return Copy(source, manifest)
    if source is not None and source.local is None:
        raise DataError(
            f"{source} has no {MANIFEST_NAME}, so it is no copy of {location}, and nothing is imported from an object"
            " store; give --from a copy, or the source on this machine"
        )
    return Imported(location, manifest, None if source is None else source.local)


def is_data_set(place: Location) -> bool:
    """Return whether there is a data set at a place."""
    return (place / MANIFEST_NAME).exists()


class Copy:
    """Another copy of the data set, on this machine or on an object store; its shards may be cut differently."""

    excuse = "the copy is damaged too"

    def __init__(self, location: Location, manifest: Manifest) -> None:
        self.name = str(location)
        self.manifest = load_manifest(location)
        if self.manifest.fingerprint != manifest.fingerprint:
            raise DataError(
                f"{location} is another data set (fingerprint {self.manifest.fingerprint[:12]}…, and not "
                f"{manifest.fingerprint[:12]}…); give --from a copy of the same, or what it was imported from"
            )
        self._location = location
        self._table = BlockTable(self.manifest)

    def images(self, blocks: range) -> Iterator[Images]:
        for number, run in groupby(blocks, self._table.shard.tolist().__getitem__):
            shard = self.manifest.shards[number]
            try:
                with closing(ShardFile(self._location, shard, self.manifest)) as file:
                    for block in run:
                        yield images_of(self._column(file, int(self._table.index[block])))
            except DataError as error:
                raise DataError(f"the copy is damaged too: {self._location / shard.path} {error}") from None

    def labels(self) -> NDArray[np.int32]:
        return read_labels(self._location, self.manifest)

    def fetch(self, num_bytes: int, xxh3: str, target: Path) -> bool:
        for shard in self.manifest.shards:
            if (shard.bytes, shard.xxh3) == (num_bytes, xxh3):
                try:
                    (self._location / shard.path).download(target)
                except StorageError as error:
                    if self._location.local is None and not isinstance(error, MissingError):
                        raise
                    return False  # a disk that cannot read all of it may still read most
                return True
        return False

    def record(self) -> bytes | None:
        try:
            is_right = read_record(self._location) is not None
        except DataError:
            return None
        return (self._location / RECORD_NAME).read_bytes() if is_right else None

    def _column(self, file: ShardFile, index: int) -> pa.Array:
        return until_right(lambda again: file.block(index), remote=self._location.local is None)


class Imported:
    """The source of an import, read again as the record beside the manifest says."""

    def __init__(self, location: Location, manifest: Manifest, src: Path | None) -> None:
        record, command = _recorded(location, manifest, src)
        src = src or Path(command["src"])
        self.name = str(src)
        if not src.exists() and "{" not in src.name:
            raise DataError(f"{src}, which {location} was imported from, is not there; give --from SRC")
        options: dict[str, Any] = dict(command["options"])
        self._limit: int | None = options.pop("limit", None)
        split = options.pop("split", None)
        self._shares = None if split is None else Shares(split)
        options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        self._source = open_source(command["kind"], src, **options)
        if (self._source.shape, self._source.encoded) != (manifest.shape, manifest.encoding == "encoded"):
            raise DataError(
                f"{src} holds {'encoded' if self._source.encoded else 'raw'} images of {list(self._source.shape)}, and "
                f"{location} {manifest.encoding} ones of {list(manifest.shape)}; "
                "give --from what it was imported from"
            )
        self._places: Sequence[Any] = record["places"]
        self._manifest = manifest
        self._table = BlockTable(manifest)
        self._src, self._identity = src, command["identity"]

    @property
    def excuse(self) -> str:
        """Return what differs: only now are the files looked at, which may be many."""
        if self._identity == identify(self._src):
            return "its files are those that were imported, but what decodes them may be of another version"
        return "its files are not those that were imported"

    def images(self, blocks: range) -> Iterator[Images]:
        shard, _ = self._table.entries(blocks[0])
        first = int(self._table.first[blocks[0]]) - self._manifest.splits[shard.split].first
        rows = int(self._table.rows[blocks.start : blocks.stop].sum())
        for part in self._read(shard.split, first, first + rows):
            yield part.images

    def labels(self) -> NDArray[np.int32]:
        found = []
        for name, split in sorted(self._manifest.splits.items(), key=lambda item: item[1].first):
            for part in self._read(name, 0, split.rows):
                found.append(np.full(len(part), -1) if part.labels is None else np.asarray(part.labels))
        return np.concatenate(found).astype(np.int32) if found else np.empty(0, np.int32)

    def fetch(self, num_bytes: int, xxh3: str, target: Path) -> bool:
        return False

    def record(self) -> bytes | None:
        return None

    def _read(self, split: str, start: int, stop: int) -> Iterator[Any]:
        return reread(self._source, split, start, stop, places=self._places, limit=self._limit, shares=self._shares)


def _recorded(location: Location, manifest: Manifest, src: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the record of an import and the command in it."""
    try:
        record = read_record(location)
    except DataError as error:
        raise DataError(f"{error}; give --from a copy of the data set") from None
    if record is not None and record["command"] is not None:
        return record, record["command"]
    if manifest.source in IMPORTERS and src is not None:  # imported before there were records: try without options
        return {"places": ()}, {"kind": manifest.source, "src": None, "options": {}, "identity": None}
    raise DataError(
        f"{location} does not say how it was imported from '{manifest.source}', so nothing can be read again; "
        "give --from a copy of the data set"
    )
