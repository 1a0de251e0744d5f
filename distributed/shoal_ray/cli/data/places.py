"""Places as a user writes them: a data set may lie on an object store, what is made is local."""

from pathlib import Path

from shoal.errors import DataError
from shoal.storage.location import Location
from shoal_ray.cli.paths import expanded, located


def data_set(text: str) -> Location:
    """Return where a data set is: a path, with ``~`` resolved, or a URI. Raises StorageError for what is neither."""
    return located(text)


def local(text: str, what: str) -> Path:
    """Return a path, with ``~`` resolved. Raises DataError for a URI."""
    if "://" in text and not text.startswith("file://"):
        raise DataError(
            f"{what} {text} is not on this machine; give a local path: `shoal data copy` brings data there and back"
        )
    return expanded(Path(text.removeprefix("file://")))
