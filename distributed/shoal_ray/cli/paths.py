"""Places as a user writes them: paths and URIs."""

import re
from pathlib import Path

from shoal.run_files import Place
from shoal.storage.location import Location


def expanded(path: Path) -> Path:
    """Return ``path`` with a leading ``~`` resolved: a shell leaves that of ``--out=~/x`` alone."""
    try:
        return path.expanduser()
    except RuntimeError:  # `~nobody`: a folder may well be called that
        return path


def located(text: str) -> Location:
    """Return where a data set is: a path, with ``~`` resolved, or a URI. Raises StorageError for what is neither."""
    return Location.parse(text if _is_uri(text) else expanded(Path(text)).absolute())


def placed(text: str) -> Place:
    """Return where a run is: a path as it was written, with ``~`` resolved, or the location that a URI names.

    Raises:
        StorageError: a URI that names no place.
    """
    if not _is_uri(text):
        return expanded(Path(text))
    place = Location.parse(text)
    return place.local or place


def _is_uri(text: str) -> bool:
    return (
        re.match(r"[A-Za-z0-9+.-]+:/", text) is not None
    )  # with one slash a slip of the pen, which `Location` explains
