"""A folder in which files of a data set are made, before each takes its place there in one step."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.files import sync_directory, temporary_beside
from shoal.storage.location import Location
from shoal.storage.locks import held, tried

_NAME = "workshop"


@contextmanager
def workshop(location: Location) -> Iterator[Path]:
    """Give a folder for the data set at ``location``: a hidden one inside it, where it is local, so that a rename does.

    What processes that were killed have left in such folders is removed.
    """
    if location.local is None:
        with tempfile.TemporaryDirectory(prefix="shoal-") as elsewhere:
            yield Path(elsewhere)
        return
    for left in location.local.glob(f".{_NAME}.*.tmp"):
        with tried(left / "lock") as nobody:
            if nobody:
                shutil.rmtree(left, ignore_errors=True)
    folder = temporary_beside(location.local / _NAME)
    try:
        with held(folder / "lock"):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put(file: Path, place: Location) -> None:
    """Let a file of a workshop, which is whole, take its place."""
    if place.local is None:
        place.upload(file)
        return
    with file.open("rb") as written:
        os.fsync(written.fileno())
    file.replace(place.local)
    sync_directory(place.local.parent)
