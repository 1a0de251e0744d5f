"""Which files a source is made of, and the split that each one's name says."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from shoal.data.importers.layout import SPLITS
from shoal.errors import DataError

WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""What the splits are called in the names of files and folders."""

MAX_FILES = 1_000_000

_WORD = re.compile(r"[A-Za-z]+")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")
_NUMBERED = re.compile(r"(.+?)-[0-9]+-of-[0-9]+")


@dataclass(frozen=True)
class SplitFile:
    """A file of a source and the split of all its rows."""

    file: Path
    split: str


def find_files(src: Path, suffixes: Sequence[str]) -> list[SplitFile]:
    """Return the files of ``src`` by split (train, val, test, then others by name) and path.

    ``src`` is a file, a folder (searched through, without hidden names), or a pattern such as ``name-{000..012}.tar``.
    A file's split is the one word for a split in its name (``train-00000-of-00003``, ``cifar_val-7``), else the nearest
    folder called so; ``extra-00000-of-00002`` beside such files makes the split ``extra``. Where no name says a split,
    all is train. Raises DataError for missing files, no files, and names that say two splits, or none beside others.
    """
    files, root = _list(src, suffixes)
    said = [_split_said(file, root) for file in files]
    splits = dict(zip(files, said, strict=True))
    if not any(said):
        splits = dict.fromkeys(files, "train")
    found = []
    for file, split in splits.items():
        numbered = _NUMBERED.match(file.name)
        split = split or (numbered[1] if numbered else None)
        if split is None:
            other = next(file for file, split in splits.items() if split)
            raise DataError(
                f"{file} says no split in its name or folders, but {other} does ('{splits[other]}'); "
                "rename it, e.g. to train-… or test-…, or import it apart"
            )
        found.append(SplitFile(file, split))
    order = {split: number for number, split in enumerate(order_splits(item.split for item in found))}
    return sorted(found, key=lambda item: (order[item.split], item.file.relative_to(root).as_posix()))


def order_splits(names: Iterable[str]) -> list[str]:
    """Return the different names: train, val, test, then the others in the order of the alphabet."""
    names = set(names)
    return [name for name in SPLITS if name in names] + sorted(names.difference(SPLITS))


def expand_braces(pattern: str) -> list[str]:
    """Return what ``a-{000..012}-{x,y}.tar`` stands for, in order: ranges keep leading zeros, as in a shell.

    Braces around neither a range nor a comma are left as they are. Raises DataError for more than a million names.
    """
    parts: list[list[str]] = []
    total, end = 1, 0
    for match in _BRACES.finditer(pattern):
        span = _RANGE.fullmatch(match[1])
        if span is None and "," not in match[1]:
            continue
        total *= abs(int(span[2]) - int(span[1])) + 1 if span else match[1].count(",") + 1
        if total > MAX_FILES:
            raise DataError(f"{pattern} stands for more than {MAX_FILES:,} files; give smaller ranges")
        parts += [[pattern[end : match.start()]], _count(span[1], span[2]) if span else match[1].split(",")]
        end = match.end()
    return ["".join(words) for words in product(*parts, [pattern[end:]])]


def _count(first: str, last: str) -> list[str]:
    padded = any(len(end) > 1 and end[0] == "0" for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    step = 1 if int(first) <= int(last) else -1
    return [f"{number:0{width}}" for number in range(int(first), int(last) + step, step)]


def _list(src: Path, suffixes: Sequence[str]) -> tuple[list[Path], Path]:
    """Return the files and the folder from which on their paths may say a split."""
    what = " or ".join(suffixes)
    if src.is_dir():
        files = [
            Path(folder) / name
            for folder, folders, names in os.walk(src)
            for name in names
            if name.endswith(tuple(suffixes)) and not _hidden(Path(folder, name), src)
        ]
        if not files:
            raise DataError(f"{src} has no {what} files; give a folder that has some, or one of the files")
        return files, src
    if src.exists():
        return [src], src.parent
    names = expand_braces(str(src))
    files = [Path(name) for name in dict.fromkeys(names)]
    if missing := next((file for file in files if not file.is_file()), None):
        which = f", one of the {len(files):,} that {src} stands for," if len(names) > 1 else ""
        raise DataError(f"{missing}{which} does not exist; give a {what} file, a folder of them, or name-{{000..012}}")
    return files, Path(os.path.commonpath([file.parent for file in files]))


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _split_said(file: Path, root: Path) -> str | None:
    """Return the split that a file's name says, or the nearest folder below ``root``."""
    said = order_splits(WORDS[word] for word in _WORD.findall(file.stem.lower()) if word in WORDS)
    if len(said) > 1:
        raise DataError(f"the name of {file} says the splits {' and '.join(said)}; rename it so that it says one")
    if said:
        return said[0]
    folders = reversed(file.relative_to(root).parent.parts)
    return next((WORDS[name.lower()] for name in folders if name.lower() in WORDS), None)
