"""The samples of a WebDataset tar: members side by side whose names agree up to the first dot.

https://github.com/webdataset/webdataset (the format); members are read where they lie and never extracted, so their
names cannot lead anywhere.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shoal.data.importers.image_files import printable
from shoal.data.importers.tar_file import content, members, open_tar
from shoal.errors import DataError

SUFFIXES = (".tar", ".tar.gz", ".tgz")
IMAGE_KEYS = ("jpg", "jpeg", "png")
LABEL_KEYS = ("cls", "json")

MAX_MEMBER_BYTES = 256 << 20
_NUMBER = re.compile(r"-?[0-9]{1,9}")


@dataclass
class Sample:
    """One sample: its key, the byte of the tar it starts at, its image or None, its label as it is written or None."""

    key: str
    start: int = 0
    image: bytes | None = None
    label: int | str | None = None


def read_samples(path: Path, start: int = 0, stop: int | None = None, *, with_images: bool = True) -> Iterator[Sample]:
    """Yield the samples of a tar from the one at byte ``start`` up to that at ``stop``; memory: one sample.

    The image is the member jpg, jpeg or png (b"" if not ``with_images``, which passes over them), the label the number
    or name in the member cls, or under "label" in the member json. Other members are passed over. Raises DataError for
    a tar that is cut off or damaged, a member twice, more than one image, and a label that cannot be read.
    """
    sample, keys = Sample(""), set[str]()
    with open_tar(path, start) as archive:
        for key, kind, member in _known(archive, stop):
            if sample.key != key:
                if keys:
                    yield sample
                sample, keys = Sample(key, member.offset), set()
            name = f"{path}: member {printable(member.name)}"
            _check(name, kind, member, keys)
            if kind in IMAGE_KEYS:
                sample.image = content(archive, member) if with_images else b""
            elif kind == "cls":
                sample.label = _from_cls(name, content(archive, member))
            elif "cls" not in keys:
                sample.label = _from_json(name, content(archive, member))
            keys.add(kind)
    if keys:
        yield sample


def _known(archive: tarfile.TarFile, stop: int | None) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield key, kind (what follows the first dot of the name) and header of the members that matter."""
    for member in members(archive, stop):
        folder, slash, base = member.name.rpartition("/")
        stem, _, kind = base.partition(".")
        if stem and not member.isdir() and (kind := kind.lower()) in IMAGE_KEYS + LABEL_KEYS:
            yield folder + slash + stem, kind, member


def _check(name: str, kind: str, member: tarfile.TarInfo, keys: set[str]) -> None:
    """Refuse a member that cannot belong to a sample which has ``keys`` already."""
    if kind in keys:
        raise DataError(f"{name} is there twice; keep one of the two")
    if kind in IMAGE_KEYS and not keys.isdisjoint(IMAGE_KEYS):
        raise DataError(f"{name} is a second image of its sample; keep one of the two")
    if not member.isreg():
        raise DataError(f"{name} is not a file but a link or a device; write the tar with the files themselves")
    if member.size > MAX_MEMBER_BYTES:
        raise DataError(f"{name} has {member.size:,} bytes, and {MAX_MEMBER_BYTES:,} are the most; make it smaller")


def _from_cls(name: str, data: bytes) -> int | str | None:
    try:
        text = data.decode().strip()
    except UnicodeDecodeError:
        raise DataError(f"{name} is not text; it must hold the number or the name of the class") from None
    return int(text) if _NUMBER.fullmatch(text) else text or None


def _from_json(name: str, data: bytes) -> int | str | None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not JSON: {error}; correct it") from None
    label = document.get("label") if isinstance(document, dict) else None
    if label is not None and (isinstance(label, bool) or not isinstance(label, int | str)):
        raise DataError(f"{name}: label {json.dumps(label)[:40]} must be the number or the name of a class; correct it")
    return label
