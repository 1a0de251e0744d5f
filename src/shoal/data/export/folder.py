"""Export to the layout that ``shoal data import folder`` reads: SPLIT/CLASS/000000.png."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from shoal.data.dataset import DataSet
from shoal.data.export.pngs import Part, pngs
from shoal.data.importers.layout import SPLITS
from shoal.errors import DataError

MAX_NAME_BYTES = 255
"""Of a file's name on the usual file systems."""


def write_folder(dataset: DataSet, part: Part, folder: Path) -> Iterator[int]:
    """Write a part below ``folder`` and yield the images of each piece."""
    row = 0
    root = folder / part.split
    for name in [""] if dataset.class_names is None else dataset.class_names:
        (root / name).mkdir(parents=True, exist_ok=True)
    with pngs(dataset, part) as pieces:
        for files, labels in pieces:
            for i, file in enumerate(files):
                place = root if labels is None or dataset.class_names is None else root / dataset.class_names[labels[i]]
                (place / part.file_name(row + i)).write_bytes(file)
            row += len(files)
            yield len(files)


def differences(dataset: DataSet, parts: Sequence[Part]) -> tuple[str, ...]:
    """Say in what an import of the folder would differ from these parts; refuse what a folder cannot say at all."""
    found = []
    splits = [part.split for part in parts]
    if others := [name for name in splits if name not in SPLITS]:
        found.append(f"split {', '.join(others)} comes back as a class: the names of splits are {', '.join(SPLITS)}")
    elif splits != [name for name in SPLITS if name in splits]:
        found.append(f"the splits come back in the order {', '.join(name for name in SPLITS if name in splits)}")
    if splits == ["train"]:
        found.append("part of the rows come back as the split test, unless it is imported with --test-fraction 0")
    if dataset.class_names is None:
        return tuple(found)
    names = dataset.class_names
    _check_names(names)
    seen: set[int] = set()
    in_order = True
    for part in parts:
        labels = dataset.labels_at(np.arange(part.first, part.first + part.rows))
        assert labels is not None
        if num := int((labels < 0).sum()):
            raise DataError(
                f"{num:,} images of split '{part.split}' have no label, which folders of classes cannot say; "
                "export to parquet"
            )
        seen.update(np.unique(labels).tolist())
        ranks = np.argsort(np.argsort(np.array(names)))[labels]
        in_order = in_order and bool((np.diff(ranks) >= 0).all())
    if not in_order:
        found.append("the rows come back ordered by class")
    kept = sorted(name for number, name in enumerate(names) if number in seen)
    if len(kept) < len(names):
        missing = [name for number, name in enumerate(names) if number not in seen]
        found.append(f"classes without an image are lost: {', '.join(missing)}")
    if kept != [name for name in names if name in kept]:
        found.append(f"the classes come back sorted by name, and numbered so: {', '.join(kept)}")
    return tuple(found)


def _check_names(names: Sequence[str]) -> None:
    folded: dict[str, str] = {}
    for name in names:
        if name in ("", ".", "..") or name.startswith(".") or "/" in name or "\0" in name:
            raise DataError(f"class name {name!r} cannot be the name of a folder to import; export to parquet")
        if len(os.fsencode(name)) > MAX_NAME_BYTES:
            raise DataError(
                f"class name {name[:40]!r}… has {len(os.fsencode(name))} bytes, and a folder's at most "
                f"{MAX_NAME_BYTES}; export to parquet"
            )
        if (other := folded.setdefault(name.casefold(), name)) != name:
            raise DataError(f"classes {other!r} and {name!r} are one folder on some file systems; export to parquet")
