"""Import CIFAR-10's and CIFAR-100's own files (Krizhevsky 2009): the Python or the binary version, packed or not.

https://www.cs.toronto.edu/~kriz/cifar.html
"""

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shoal.data.importers.cifar_pickle import as_pixels, read_pickle, text
from shoal.data.importers.source import Rows
from shoal.data.importers.tar_file import content, members, open_tar
from shoal.errors import DataError

SHAPE = (3, 32, 32)
ROW_BYTES = 3 * 32 * 32
PIECE_ROWS = 1024
MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True)
class Version:
    """How one version of a data set is laid out in files.

    Attributes:
        folder: that its archive unpacks to.
        files: of each split, in order.
        names: the file of the class names.
        label: the pickle's key of the labels, and that of the names; None for the binary version.
        label_bytes: before the pixels of a binary row; the last of them is the label.
    """

    folder: str
    files: dict[str, tuple[str, ...]]
    names: str
    label: tuple[str, str] | None = None
    label_bytes: int = 0


_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))

CIFAR10 = (
    Version(
        "cifar-10-batches-py",
        {"train": _TRAIN, "test": ("test_batch",)},
        "batches.meta",
        label=("labels", "label_names"),
    ),
    Version(
        "cifar-10-batches-bin",
        {"train": tuple(f"{name}.bin" for name in _TRAIN), "test": ("test_batch.bin",)},
        "batches.meta.txt",
        label_bytes=1,
    ),
)
CIFAR100 = (
    Version(
        "cifar-100-python",
        {"train": ("train",), "test": ("test",)},
        "meta",
        label=("fine_labels", "fine_label_names"),
    ),
    Version(
        "cifar-100-binary", {"train": ("train.bin",), "test": ("test.bin",)}, "fine_label_names.txt", label_bytes=2
    ),
)


class Batch(NamedTuple):
    """One file, by its name, and the split of all its rows."""

    split: str
    name: str


@dataclass(frozen=True)
class CifarSource:
    """The files of one version, in a folder or in the archive that they come in."""

    src: Path
    version: Version
    class_names: Sequence[str] | None
    units: Sequence[Batch]
    kind: str
    splits: Sequence[str] = ("train", "test")
    shape: tuple[int, int, int] = SHAPE
    num_rows: int | None = None
    encoded: bool = False

    def read(self, unit: Batch) -> Iterator[Rows]:
        """Yield the rows of a file, in pieces of about 3 MiB. Raises DataError that names the file."""
        name = f"{self.src}: {unit.name}"
        pixels, labels = _parse(name, _read_file(self.src, unit.name), self.version)
        num_classes = len(self.class_names or ())
        if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
            raise DataError(
                f"{name} has labels from {labels.min()} to {labels.max()}, not 0 to {num_classes - 1}; fetch it again"
            )
        for start in range(0, len(pixels), PIECE_ROWS):
            stop = start + PIECE_ROWS
            yield Rows(unit.split, pixels[start:stop].reshape(-1, *SHAPE), labels[start:stop])


def open_cifar10(src: Path) -> CifarSource:
    """Open cifar-10-batches-py or cifar-10-batches-bin, the folder that holds it, or its .tar.gz.

    Makes train (data_batch_1 to 5) and test of [3, 32, 32], in the order of the files, with the class names that come
    with them. The pickles of the Python version are read by ``cifar_pickle``, which runs nothing. Raises DataError for
    files that are missing or are not CIFAR's.
    """
    return _open("cifar10", src, CIFAR10)


def open_cifar100(src: Path) -> CifarSource:
    """Open cifar-100-python or cifar-100-binary, as ``open_cifar10`` does; the labels are the 100 fine ones."""
    return _open("cifar100", src, CIFAR100)


def _open(kind: str, src: Path, versions: Sequence[Version]) -> CifarSource:
    root, found = _list(src, [version.folder for version in versions])
    for version in versions:
        wanted = [Batch(split, name) for split, files in version.files.items() for name in files]
        there = [name for _, name in wanted if name in found]
        if not there:
            continue
        if missing := [name for name in (version.names, *(batch.name for batch in wanted)) if name not in found]:
            raise DataError(f"{src} has {there[0]} but not {', '.join(missing)}; fetch it again")
        class_names = _class_names(f"{src}: {version.names}", _read_file(root, version.names), version)
        return CifarSource(src=root, version=version, class_names=class_names, units=wanted, kind=kind)
    folders = " or ".join(version.folder for version in versions)
    raise DataError(f"{src} does not hold the files of {kind}; give the folder {folders}, or the .tar.gz it comes in")


def _list(src: Path, folders: Sequence[str]) -> tuple[Path, set[str]]:
    """Return where the files are, and the names that are there."""
    if src.is_dir():
        root = next((src / name for name in folders if (src / name).is_dir()), src)
        return root, {file.name for file in root.iterdir() if file.is_file()}
    if not src.exists():
        raise DataError(f"{src} does not exist; give the folder {' or '.join(folders)}, or the .tar.gz it comes in")
    with open_tar(src) as archive:
        return src, {_base(member) for member in members(archive) if member.isreg()}


def _read_file(src: Path, name: str) -> bytes:
    """Return a file of the folder, or of the archive, ``src``."""
    if src.is_dir():
        try:
            return (src / name).read_bytes()
        except OSError as error:
            raise DataError(f"{src / name} cannot be read: {error}; fetch it again") from None
    with open_tar(src) as archive:
        for member in members(archive):
            if member.isreg() and _base(member) == name:
                if member.size > MAX_FILE_BYTES:
                    raise DataError(
                        f"{src}: {name} has {member.size:,} bytes, more than any of CIFAR's; fetch it again"
                    )
                return content(archive, member)
    raise DataError(f"{src}: {name} is no longer there; fetch it again")


def _base(member: tarfile.TarInfo) -> str:
    return member.name.rpartition("/")[2]


def _parse(name: str, data: bytes, version: Version) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the pixels, [n, 3072] in the order of channels, rows and columns, and the labels [n] of a file."""
    if version.label is None:
        row_bytes = version.label_bytes + ROW_BYTES
        if not data or len(data) % row_bytes:
            raise DataError(f"{name} has {len(data):,} bytes, which is no multiple of {row_bytes:,}; fetch it again")
        rows = np.frombuffer(data, np.uint8).reshape(-1, row_bytes)
        return rows[:, version.label_bytes :], rows[:, version.label_bytes - 1].astype(np.int64)
    batch = read_pickle(name, data)
    key = version.label[0]
    if missing := {"data", key} - batch.keys():
        raise DataError(f"{name} has no {' and no '.join(sorted(missing))}; fetch it again")
    pixels = as_pixels(name, batch["data"])
    labels = batch[key]
    if pixels.shape[1] != ROW_BYTES or not isinstance(labels, list) or len(labels) != len(pixels):
        num = len(labels) if isinstance(labels, list) else 0
        raise DataError(
            f"{name} has pixels {list(pixels.shape)} and {num:,} labels, not [n, 3072] and n; fetch it again"
        )
    if not all(type(label) is int and 0 <= label < 1000 for label in labels):
        raise DataError(f"{name} has labels that are no class numbers; fetch it again")
    return pixels, np.array(labels, np.int64)


def _class_names(name: str, data: bytes, version: Version) -> list[str]:
    if version.label is None:
        return text(name, data).split()
    names: Any = read_pickle(name, data).get(version.label[1])
    if not isinstance(names, list) or not names:
        raise DataError(f"{name} has no {version.label[1]}; fetch it again")
    return [text(name, value) for value in names]
