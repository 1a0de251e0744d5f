"""Which image files a folder holds, and the split and class that their places say."""

import os
from dataclasses import dataclass
from pathlib import Path

import xxhash

from shoal.data.importers.images import SUFFIXES
from shoal.errors import DataError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Found:
    """An image file and the name of its class, or None where its split has no classes."""

    file: Path
    class_name: str | None


def find_images(src: Path, test_fraction: float) -> dict[str, list[Found]]:
    """Return the image files of each split, in the order of splits, classes and relative paths.

    ``src`` holds train/, val/ or test/, or else one folder per class, or else images; so does each of the three. Class
    folders may have folders of their own; names that start with a dot are passed over. Where there is only a train
    split, the files whose relative path hashes below ``test_fraction`` become test: always the same ones, whatever
    else is in the folder. Raises DataError.
    """
    if not src.is_dir():
        raise DataError(f"{src} is not a directory; give a folder of PNG or JPEG files")
    if not 0 <= test_fraction < 1:
        raise DataError(f"test fraction {test_fraction} must be in [0, 1); 0 makes no test split")
    folders = [name for name in SPLITS if (src / name).is_dir()]
    if not folders:
        splits = {"train": _find_classes(src)}
    else:
        if stray := [entry.name for entry in _entries(src) if entry.name not in folders and _images_under(entry)]:
            raise DataError(
                f"{src} has the splits {', '.join(folders)}, and images in {stray[0]} beside them; "
                "move those into a split"
            )
        splits = {name: _find_classes(src / name) for name in folders}
    for name, found in splits.items():
        if not found:
            where = src / name if folders else src
            raise DataError(f"{where} has no image files ({', '.join(sorted(SUFFIXES))}); give a folder that has some")
    return _hold_out(src, splits["train"], test_fraction) if list(splits) == ["train"] else splits


def _hold_out(src: Path, found: list[Found], fraction: float) -> dict[str, list[Found]]:
    splits: dict[str, list[Found]] = {"train": [], "test": []}
    for item in found:
        share = xxhash.xxh3_64_intdigest(item.file.relative_to(src).as_posix().encode(errors="surrogateescape")) / 2**64
        splits["test" if share < fraction else "train"].append(item)
    return splits if splits["train"] and splits["test"] else {"train": found}


def _find_classes(folder: Path) -> list[Found]:
    """Return the images of one split: those of its class folders, or those that lie in it."""
    flat = [entry for entry in _entries(folder) if entry.is_file() and _is_image(entry)]
    classes = {entry.name: files for entry in _entries(folder) if entry.is_dir() and (files := _images_under(entry))}
    if flat and classes:
        raise DataError(
            f"{folder} has images ({flat[0].name}) beside class folders ({next(iter(classes))}); "
            "put each image into a class folder, or all of them into one folder"
        )
    return [Found(file, name) for name, files in classes.items() for file in files] or [Found(f, None) for f in flat]


def _images_under(entry: Path) -> list[Path]:
    """Return the images in ``entry`` and its folders, or ``entry`` itself, sorted by relative path."""
    if not entry.is_dir():
        return [entry] if _is_image(entry) else []
    found = []
    for folder, folders, names in os.walk(entry):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder) / name for name in names if _is_image(Path(name))]
    return sorted(found, key=lambda file: file.relative_to(entry).as_posix())


def _entries(folder: Path) -> list[Path]:
    return sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=lambda e: e.name)


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
