"""The manifest: what a data set directory promises, and the fingerprint of its content."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shoal.data.second_look import until_right
from shoal.errors import DataError
from shoal.storage.location import Location

MANIFEST_VERSION = 2
"""Read: this and every older one. Raw data sets are written as version 1, encoded ones, which came later, as 2."""
MANIFEST_NAME = "manifest.json"

Count = Annotated[int, Field(ge=1)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")]  # a plain name: never leaves the directory
Hash64 = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Block(_Frozen):
    """One record batch: its rows, the xxh3_64 of its payload, and the rows of each class that occurs in it.

    The payload of raw rows is their bytes one after another; that of encoded rows their lengths in bytes as
    little-endian int64, then the files one after another.
    """

    rows: Count
    xxh3: Hash64
    classes: dict[int, int] | None


class Shard(_Frozen):
    """One Arrow file of one split: its size in bytes, the xxh3_64 of the whole file, and its blocks in order."""

    path: FileName
    split: str
    rows: Count
    bytes: Count
    xxh3: Hash64
    blocks: tuple[Block, ...]


class Split(_Frozen):
    """The contiguous global ids ``first .. first + rows - 1``."""

    first: Annotated[int, Field(ge=0)]
    rows: Count


class LabelsFile(_Frozen):
    """The file of all labels: its size in bytes, the xxh3_64 of the file, and that of its little-endian int32 rows."""

    path: FileName
    bytes: Count
    xxh3: Hash64
    rows_xxh3: Hash64


class Manifest(_Frozen):
    """Everything that is known of a data set without opening a shard.

    ``shape`` is (channels, height, width) of uint8 rows. They lie in the shards as they are (``raw``), or as PNG and
    JPEG files that become such rows (``encoded``). ``class_names`` and ``labels`` are both there or both None: a
    data set is labelled exactly when its classes have names. Every block of a split holds ``rows_per_block`` rows,
    except for the split's last.
    """

    version: Literal[1, 2] = 1
    shape: tuple[Count, Count, Count]
    dtype: Literal["uint8"] = "uint8"
    encoding: Literal["raw", "encoded"] = "raw"
    class_names: tuple[str, ...] | None
    rows_per_block: Count
    splits: dict[str, Split]
    shards: tuple[Shard, ...]
    labels: LabelsFile | None
    source: str
    fingerprint: str = ""

    @property
    def row_bytes(self) -> int:
        """Return the bytes of one row, channels x height x width."""
        channels, height, width = self.shape
        return channels * height * width

    @property
    def num_rows(self) -> int:
        """Return the rows of all splits together."""
        return sum(split.rows for split in self.splits.values())

    def file_sizes(self) -> dict[str, int]:
        """Return the size in bytes of each file beside the manifest."""
        sizes = {shard.path: shard.bytes for shard in self.shards}
        return sizes if self.labels is None else {**sizes, self.labels.path: self.labels.bytes}

    def digest(self) -> str:
        """Return the sha256, in hex, of what the rows are and of how blocks divide them.

        File names, file sizes, file checksums and the source are left out: they say where the content lies and who
        brought it, and a newer Arrow may lay out the same rows differently.
        """
        content = {
            "version": self.version,
            "shape": self.shape,
            "dtype": self.dtype,
            "class_names": self.class_names,
            "rows_per_block": self.rows_per_block,
            "splits": {name: split.model_dump(mode="json") for name, split in self.splits.items()},
            "blocks": [block.model_dump(mode="json") for shard in self.shards for block in shard.blocks],
            "labels": self.labels and self.labels.rows_xxh3,
        }
        if self.encoding != "raw":
            content["encoding"] = self.encoding
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def sealed(self) -> Self:
        """Return a copy that carries the fingerprint of its content."""
        return self.model_copy(update={"fingerprint": self.digest()})

    def to_json(self) -> str:
        """Return the text of the file: compact, keys in the order of the fields, splits in the order of their ids."""
        return self.model_dump_json(exclude={"encoding"} if self.encoding == "raw" else None) + "\n"

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if (self.version == 1) != (self.encoding == "raw"):
            raise ValueError(f"version {self.version} does not go with encoding '{self.encoding}'")
        if (self.class_names is None) != (self.labels is None):
            raise ValueError("class_names and labels must both be there or both be null")
        if not self.splits:
            raise ValueError("there is no split")
        first = 0
        in_order = sorted(self.splits.items(), key=lambda item: item[1].first)
        for name, split in in_order:
            blocks = [block for shard in self.shards if shard.split == name for block in shard.blocks]
            full = [block.rows == self.rows_per_block for block in blocks]
            if split.first != first or split.rows != sum(block.rows for block in blocks) or not all(full[:-1]):
                raise ValueError(f"the blocks of split '{name}' do not add up to its rows")
            first += split.rows
        if list(dict.fromkeys(shard.split for shard in self.shards)) != [name for name, _ in in_order]:
            raise ValueError("shards must follow the order of the splits")
        for shard in self.shards:
            if shard.rows != sum(block.rows for block in shard.blocks):
                raise ValueError(f"the blocks of {shard.path} do not add up to its rows")
        return self


def parse_manifest(path: str | Path | Location) -> Manifest:
    """Read the manifest of the data set ``path`` without comparing its fingerprint.

    Raises DataError when the directory or the manifest is missing, malformed, or of a newer version.
    """
    return _read_manifest(path, _parse)


def load_manifest(path: str | Path | Location) -> Manifest:
    """Read and check the manifest of the data set ``path``, a directory or the URI of one.

    Raises DataError when it is missing, malformed, of a newer version, or not what its fingerprint was taken of.
    """
    return _read_manifest(path, _parse_and_check)


def _read_manifest(path: str | Path | Location, parse: Callable[[Location], Manifest]) -> Manifest:
    place = Location.parse(path)
    file = place / MANIFEST_NAME
    if not file.exists():
        raise _no_data_set(place)
    return until_right(lambda again: parse(file), remote=place.local is None)


def _parse(file: Location) -> Manifest:
    try:
        text = file.read_bytes()
        version = _version(json.loads(text))
        if version > MANIFEST_VERSION:
            raise DataError(
                f"{file}: manifest version {version} is newer than this shoal, which reads up to {MANIFEST_VERSION}; "
                "upgrade shoal, or import the data again with this one"
            )
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _malformed(file, f"{where}: {first['msg']}" if where else first["msg"]) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _malformed(file, str(error)) from None


def _parse_and_check(file: Location) -> Manifest:
    manifest = _parse(file)
    digest = manifest.digest()
    if manifest.fingerprint != digest:
        raise DataError(
            f"{file}: the fingerprint is {manifest.fingerprint[:12]}… but the content gives "
            f"{digest[:12]}…, so the manifest was changed after the import; import the data again"
        )
    return manifest


def _no_data_set(place: Location) -> DataError:
    if place.exists() and (place.local is None or place.local.is_dir()):
        return DataError(
            f"{place} has no {MANIFEST_NAME}, so it is not an imported data set; "
            f"make one with `shoal data import KIND {place} --out DIR`"
        )
    what = "is not a directory" if place.exists() else "does not exist"
    return DataError(f"data set {place} {what}; make one with `shoal data import KIND SRC --out {place}`")


def _version(document: Any) -> int:
    version = document.get("version") if isinstance(document, dict) else None
    return version if isinstance(version, int) else 0


def _malformed(file: Location, why: str) -> DataError:
    return DataError(f"{file} is not a manifest that shoal wrote: {why}; import the data again")
