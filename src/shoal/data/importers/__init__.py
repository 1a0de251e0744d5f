"""What can be imported: a registry to read, and one function that picks from it."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shoal.data.importers.cifar10 import open_cifar10, open_cifar100
from shoal.data.importers.fashion_mnist import open_fashion_mnist
from shoal.data.importers.folder import open_folder
from shoal.data.importers.idx import open_idx
from shoal.data.importers.npz import open_npz
from shoal.data.importers.parquet import open_parquet
from shoal.data.importers.partial import Command
from shoal.data.importers.pipeline import ImportProgress, Notice, run_import
from shoal.data.importers.record import identify
from shoal.data.importers.source import Rows, Source
from shoal.data.importers.splitting import Shares, parse_shares
from shoal.data.importers.torch_dataset import open_torch
from shoal.data.importers.webdataset import open_webdataset
from shoal.data.manifest import Manifest
from shoal.data.write import check_destination
from shoal.errors import DataError, did_you_mean

IMPORTERS: dict[str, Callable[..., Source]] = {
    "cifar10": open_cifar10,
    "cifar100": open_cifar100,
    "fashion-mnist": open_fashion_mnist,
    "folder": open_folder,
    "idx": open_idx,
    "npz": open_npz,
    "parquet": open_parquet,
    "webdataset": open_webdataset,
}
"""Each opens a source by its path and the importer's own options."""

__all__ = ["IMPORTERS", "Rows", "Source", "import_data", "open_source", "open_torch", "run_import"]

_WITHOUT_TRACE = {"download_to", "may_install", "notice"}  # options that don't say what is imported


def import_data(
    kind: str,
    src: Path | str | None,
    out: Path | str,
    *,
    jobs: int = 1,
    limit: int | None = None,
    split: Mapping[str, float] | str | None = None,
    fresh: bool = False,
    progress: ImportProgress | None = None,
    notice: Notice | None = None,
    **options: Any,
) -> tuple[Manifest, int]:
    """Import ``src`` with the importer ``kind`` and return the manifest and the number of images that were skipped.

    See ``run_import`` for the named arguments; ``options`` are the importer's own, its default where they are None. The
    same call goes on with an import that was interrupted. Where ``split`` divides train, a folder holds no test split
    of its own out unless ``test_fraction`` says so. Raises DataError for an unknown kind, an option that the importer
    does not take, and whatever the importer refuses.
    """
    out = Path(out).absolute()
    src = None if src is None else Path(src)
    if kind in IMPORTERS:
        check_destination(out)
    shares = parse_shares(split) if isinstance(split, str) else None if split is None else Shares(split)
    given = {name: value for name, value in options.items() if value is not None}
    if kind == "folder" and shares is not None:
        given.setdefault("test_fraction", 0.0)
    if kind == "fashion-mnist":
        given = {"download_to": out.parent / "downloads", "notice": notice, **given}
    source = open_source(kind, src, **given)
    found = (src or Path(vars(source)["src"])).absolute()
    traced = {name: value for name, value in sorted(given.items()) if name not in _WITHOUT_TRACE}
    traced |= {"limit": limit, "split": None if shares is None else shares.by_name}
    return run_import(
        source,
        out,
        jobs=jobs,
        limit=limit,
        split=shares,
        fresh=fresh,
        command=Command(kind, str(found), traced, identify(found)),
        progress=progress,
        notice=notice,
    )


def open_source(kind: str, src: Path | None, **options: Any) -> Source:
    """Open ``src`` with the importer ``kind``. Raises DataError as ``import_data`` does."""
    importer = IMPORTERS.get(kind)
    if importer is None:
        raise DataError(
            f"there is no importer '{kind}'{did_you_mean(kind, IMPORTERS)}; choose one of {', '.join(IMPORTERS)}"
        )
    taken = {name for name, p in inspect.signature(importer).parameters.items() if p.kind is p.KEYWORD_ONLY}
    if unknown := sorted(set(options) - taken):
        which = (
            f"it takes {', '.join(sorted(taken - _WITHOUT_TRACE))}" if taken - _WITHOUT_TRACE else "it has no options"
        )
        raise DataError(f"importer {kind} takes no {', '.join(unknown)}; {which}")
    if src is None and kind != "fashion-mnist":
        raise DataError(f"importer {kind} needs a source; give `shoal data import {kind} SRC --out DIR`")
    return importer(src, **options)
