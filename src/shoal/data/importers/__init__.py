"""What can be imported: a registry to read, and one function that picks from it."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shoal.data.importers.fashion_mnist import import_fashion_mnist
from shoal.data.importers.folder import import_folder
from shoal.data.importers.idx import import_idx
from shoal.data.importers.npz import import_npz
from shoal.data.manifest import Manifest
from shoal.errors import DataError, did_you_mean

IMPORTERS: dict[str, Callable[..., Manifest | tuple[Manifest, int]]] = {
    "fashion-mnist": import_fashion_mnist,
    "folder": import_folder,
    "idx": import_idx,
    "npz": import_npz,
}

__all__ = ["IMPORTERS", "import_data"]


def import_data(kind: str, src: Path | None, out: Path, **options: Any) -> tuple[Manifest, int]:
    """Import ``src`` with the importer ``kind`` and return the manifest and the number of images that were skipped.

    Options that are None are left to the importer's default. Raises DataError for an unknown kind, an option that the
    importer does not take, and whatever the importer refuses.
    """
    importer = IMPORTERS.get(kind)
    if importer is None:
        raise DataError(
            f"there is no importer '{kind}'{did_you_mean(kind, IMPORTERS)}; choose one of {', '.join(IMPORTERS)}"
        )
    given = {name: value for name, value in options.items() if value is not None}
    taken = {name for name, p in inspect.signature(importer).parameters.items() if p.kind is p.KEYWORD_ONLY}
    if unknown := sorted(set(given) - taken):
        raise DataError(f"importer {kind} takes no {', '.join(unknown)}; it takes {', '.join(sorted(taken))}")
    if src is None and kind != "fashion-mnist":
        raise DataError(f"importer {kind} needs a source; give `shoal data import {kind} SRC --out {out}`")
    done = importer(src, out, **given)
    return done if isinstance(done, tuple) else (done, 0)
