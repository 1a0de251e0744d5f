"""Where a data set came from: ``import.json`` beside the manifest, to import it, or a part of it, once more.

It is no part of the fingerprint: the same rows are the same data set, whoever brought them from where.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xxhash

from shoal.data.importers.partial import Checkpoint, Command
from shoal.data.importers.splits import expand_braces
from shoal.errors import DataError, MissingError, StorageError
from shoal.files import write_text
from shoal.storage.location import Location

RECORD_NAME = "import.json"
RECORD_VERSION = 1


def identify(src: Path) -> dict[str, Any]:
    """Return what tells the files at ``src`` (a file, a folder, a pattern with braces) from changed ones.

    Sizes and times of change stand for the content, as in make and rsync.
    """
    digest = xxhash.xxh3_64()
    num_files = num_bytes = 0
    for name, status in _files(src):
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
        num_files += 1
        num_bytes += status.st_size
    return {"files": num_files, "bytes": num_bytes, "xxh3": digest.hexdigest()}


def _files(src: Path) -> Iterator[tuple[str, os.stat_result]]:
    if not src.is_dir():
        for file in map(Path, [str(src)] if src.exists() else expand_braces(str(src))):
            if file.exists():
                yield file.name, file.stat()
        return
    for folder, folders, names in os.walk(src):
        folders.sort()
        for name in sorted(names):
            file = Path(folder) / name
            if file.exists():  # and is no link that leads nowhere
                yield file.relative_to(src).as_posix(), file.stat()


def write_record(
    folder: Path, source: str, command: Command | None, num_skipped: int, checkpoints: Sequence[Checkpoint]
) -> None:
    """Write ``import.json``: what was imported, and places from which a part of it can be read again.

    ``places`` has, about once per shard, where the source was being read, and how many rows each split had by then.
    ``source`` is what the manifest says; ``command`` is null where it could not be given once more.
    """
    places = [
        {**asdict(point.place), "given": {split: saved.num_rows for split, saved in point.saved.items()}}
        for point in checkpoints
        if not point.is_done
    ]
    document = {
        "version": RECORD_VERSION,
        "source": source,
        "command": None if command is None else command.to_json(),
        "num_skipped": num_skipped,
        "places": places,
    }
    write_text(folder / RECORD_NAME, _sealed(document))


def read_record(path: str | Path | Location) -> dict[str, Any] | None:
    """Return what ``write_record`` wrote beside a data set, or None where nothing did. Raises DataError."""
    file = Location.parse(path) / RECORD_NAME
    try:
        text = file.read_bytes().decode()
        document: dict[str, Any] = json.loads(text)
        if document.pop("xxh3", None) is None or _sealed(document) != text:
            raise ValueError("its xxh3 is another one, so it was changed after the import")
        if document["version"] <= RECORD_VERSION and {"source", "command", "places"} <= document.keys():
            return document
        why = f"it is of version {document['version']}, and this shoal reads up to {RECORD_VERSION}"
    except MissingError:
        return None
    except StorageError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
    raise DataError(f"{file} is not a record that this shoal wrote: {why}; the rows can be used without it")


def _sealed(document: dict[str, Any]) -> str:
    """Return the text of the file: the document and, at its end, the xxh3_64 of the text without that."""
    digest = xxhash.xxh3_64_hexdigest(json.dumps(document, indent=1).encode())
    return json.dumps({**document, "xxh3": digest}, indent=1) + "\n"
