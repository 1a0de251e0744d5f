import gzip
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shoal.data import DataSet
from shoal.data.importers import IMPORTERS, fashion_mnist, import_data
from shoal.data.importers import idx as idx_module
from shoal.data.importers.fashion_mnist import CLASS_NAMES, find_fashion_mnist
from shoal.data.importers.idx import open_idx
from shoal.errors import DataError

X = np.random.default_rng(0).integers(0, 256, (30, 5, 6), dtype=np.uint8)
Y = (np.arange(30) % 10).astype(np.uint8)


def idx(array: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """The four files of a tiny Fashion-MNIST, two of them gzipped."""
    folder = tmp_path / "idx"
    folder.mkdir()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(X[:20])))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(Y[:20])))
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(X[20:]))
    (folder / "t10k-labels.idx1-ubyte").write_bytes(idx(Y[20:]))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_fashion_mnist(src: Path, out: Path) -> None:
    manifest, skipped = import_data("fashion-mnist", src, out)
    dataset = DataSet.open(out)
    assert (manifest.source, skipped) == ("fashion-mnist", 0)
    assert dataset.shape == (1, 5, 6)
    assert dataset.class_names == CLASS_NAMES
    assert dataset.splits == {"train": 20, "test": 10}
    assert np.array_equal(dataset.rows("test", 0, 10)[:, 0], X[20:])
    labels = dataset.labels("train")
    assert labels is not None
    assert labels.tolist() == Y[:20].tolist()


def test_idx_without_labels_or_test(src: Path, out: Path) -> None:
    for file in src.glob("*labels*"):
        file.unlink()
    (src / "t10k-images-idx3-ubyte").unlink()
    import_data("idx", src, out)
    assert DataSet.open(out).class_names is None
    assert DataSet.open(out).splits == {"train": 20}


def test_idx_numbers_classes_without_names(src: Path, out: Path) -> None:
    import_data("idx", src, out)
    assert DataSet.open(out).class_names == [str(number) for number in range(10)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte.gz", idx(Y), r"starts with 00000801, an idx file of uint8 in 3 dimensions"),
        ("train-images-idx3-ubyte.gz", b"", "starts with nothing"),
        ("train-images-idx3-ubyte.gz", idx(X)[:-7], r"has 909 bytes, its header \[30, 5, 6\] says 916"),
        ("train-images-idx3-ubyte.gz", idx(X) + b"!", r"has 917 bytes"),
        ("train-images-idx3-ubyte.gz", idx(X)[:9], r"has 9 bytes"),
        ("train-images-idx3-ubyte.gz", gzip.compress(idx(X[:20]))[:-20], "is not a whole gzip file"),
        ("train-images-idx3-ubyte.gz", gzip.compress(idx(X[:20])[:-3]), "ends before its header says"),
        ("train-images-idx3-ubyte.gz", gzip.compress(idx(X[:20]) + b"!"), "has more bytes than its header says"),
        ("train-labels-idx1-ubyte.gz", gzip.compress(idx(Y[:20]) + b"!"), r"more bytes than its header \[20\] says"),
        ("train-images-idx3-ubyte.gz", idx(X[:19]), "19 images but 20 labels"),
        ("t10k-images-idx3-ubyte", idx(X[20:, :, :5]), r"shape \[1, 5, 5\] do not fit the data set's \[1, 5, 6\]"),
        ("t10k-labels.idx1-ubyte", None, "has labels, but none for split test; add t10k-labels"),
        ("train-labels-idx1-ubyte.gz", idx(Y[:20] + 1), "labels run from 1 to 10, but 10 classes"),
    ],
)
def test_bad_idx(src: Path, out: Path, name: str, content: bytes | None, message: str) -> None:
    (src / name).unlink() if content is None else (src / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        import_data("idx", src, out, class_names=CLASS_NAMES)
    assert not out.exists()


def test_no_idx(tmp_path: Path, out: Path) -> None:
    with pytest.raises(DataError, match=r"has no train-images-idx3-ubyte\[.gz\]"):
        import_data("idx", tmp_path, out)
    with pytest.raises(DataError, match="absent is not a directory"):
        import_data("idx", tmp_path / "absent", out)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which Fashion-MNIST is in none of its places."""

    class NoDownload:
        def __init__(self, root: str, download: bool) -> None:
            raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    torchvision = ModuleType("torchvision.datasets")
    torchvision.FashionMNIST = NoDownload  # type: ignore[attr-defined]  # stands for the real module
    monkeypatch.setitem(sys.modules, "torchvision.datasets", torchvision)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv("SHOAL_DATA", raising=False)


@pytest.mark.usefixtures("nowhere")
def test_each_failed_try_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_DATA", str(tmp_path / "mine"))
    with pytest.raises(DataError) as error:
        find_fashion_mnist(tmp_path, may_install=False)
    for part in (
        f"folder SHOAL_DATA: {tmp_path}/mine is not a directory",
        f"folder {tmp_path}/debian: {tmp_path}/debian is not a directory",
        "apt-get install dataset-fashion-mnist: not allowed here",
        "torchvision's download: Error downloading train-images",
        "set SHOAL_DATA to it",
    ):
        assert part in str(error.value)


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("inside", [".", "fashion-mnist", "FashionMNIST/raw"])
def test_found_in_the_environment(src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    folder = tmp_path / "data" / inside
    folder.parent.mkdir(exist_ok=True, parents=True)
    src.rename(folder)
    monkeypatch.setenv("SHOAL_DATA", str(tmp_path / "data"))
    assert find_fashion_mnist(tmp_path, may_install=False) == folder


@pytest.mark.usefixtures("nowhere")
def test_found_after_an_earlier_download(src: Path, tmp_path: Path) -> None:
    (tmp_path / "FashionMNIST").mkdir()
    src.rename(tmp_path / "FashionMNIST" / "raw")
    assert find_fashion_mnist(tmp_path, may_install=False) == tmp_path / "FashionMNIST" / "raw"


@pytest.mark.usefixtures("nowhere")
def test_apt_get_is_announced_and_tried_again_after_an_update(
    src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        log.append(command[1])
        if log.count("install") == 2:
            src.rename(tmp_path / "debian")
        failed = log.count("install") == 1 and command[1] == "install"
        return subprocess.CompletedProcess(command, 100 if failed else 0, "", "E: Unable to locate package\n")

    monkeypatch.setattr(subprocess, "run", run)
    assert find_fashion_mnist(tmp_path, may_install=True, notice=log.append) == tmp_path / "debian"
    assert log == ["Installing Debian's package dataset-fashion-mnist with apt-get", "install", "update", "install"]


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(
    ("obstacle", "message"),
    [
        (lambda patch: patch.setattr(os, "geteuid", lambda: 1000), "we are not root"),
        (lambda patch: patch.setattr(shutil, "which", lambda name: None), "there is no apt-get"),
        (lambda patch: patch.setattr(fashion_mnist, "_run", lambda command: "E: no network"), "E: no network"),
        (lambda patch: patch.setattr(fashion_mnist, "_run", hang), "no answer within 300 s"),
    ],
)
def test_why_apt_get_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obstacle: Callable[[pytest.MonkeyPatch], None], message: str
) -> None:
    obstacle(monkeypatch)
    with pytest.raises(DataError, match=f"apt-get install dataset-fashion-mnist: {message}"):
        find_fashion_mnist(tmp_path, may_install=True)


def hang(command: list[str]) -> str:
    raise subprocess.TimeoutExpired(command, 300)


def test_registry(tmp_path: Path, out: Path, src: Path) -> None:
    with pytest.raises(
        DataError, match=r"no importer 'fashionmnist' \(did you mean 'fashion-mnist'\?\); choose one of"
    ):
        import_data("fashionmnist", src, out)
    with pytest.raises(DataError, match=r"importer idx takes no size; it takes class_names"):
        import_data("idx", src, out, size=3, mode=None)
    with pytest.raises(DataError, match="importer npz needs a source"):
        import_data("npz", None, out)
    with pytest.raises(DataError, match="importer cifar10 takes no size; it has no options"):
        import_data("cifar10", src, out, size=3)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    for kind, importer in IMPORTERS.items():
        assert next(iter(inspect.signature(importer).parameters)) == "src"
        with pytest.raises(DataError, match="taken exists already"):
            import_data(kind, tmp_path / "absent", tmp_path / "taken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["idx", "taken"]


@pytest.mark.parametrize(
    ("kind", "fingerprint"),
    [
        ("idx", "7d07b5d05ca03ccc6c8151cff470cb0e9116971a63926f1db9f4a1f8c6b4af8b"),
        ("fashion-mnist", "bc4f45173b55b0144940d4820dadb601a51ae91def92fdfedf6b15c19e8486bb"),
    ],
)
def test_golden_fingerprints(src: Path, out: Path, kind: str, fingerprint: str) -> None:
    # Pinned before files were read in pieces: runs name their data set by it.
    assert import_data(kind, src, out, jobs=2)[0].fingerprint == fingerprint


def test_an_idx_file_is_read_in_units_and_pieces(src: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx_module, "PIECE_BYTES", 3 * 30)
    monkeypatch.setattr(idx_module, "UNIT_BYTES", 7 * 30)
    source = open_idx(src)
    assert [tuple(unit) for unit in source.units] == [("train", 0, 20), ("test", 0, 7), ("test", 7, 10)]
    pieces = [rows for unit in reversed(source.units) for rows in source.read(unit)]  # in any order
    assert [len(rows) for rows in pieces] == [3, 3, 3, 1, *[3] * 6, 2]
    images = np.concatenate([np.asarray(rows.images)[:, 0] for rows in pieces])
    assert np.array_equal(images, np.concatenate([X[27:], X[20:27], X[:20]]))
    labels = np.concatenate([np.asarray(rows.labels) for rows in pieces])
    assert labels.tolist() == [*Y[27:], *Y[20:27], *Y[:20]]


def test_where_fashion_mnist_was_found_is_on_record(src: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_DATA", str(src))
    import_data("fashion-mnist", None, out)
    record = json.loads((out / "import.json").read_text())
    assert record["command"]["kind"] == "fashion-mnist"
    assert record["command"]["src"] == str(src)
    assert record["command"]["options"] == {"limit": None, "split": None}
    assert record["command"]["identity"]["files"] == 4
