import io
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import BuiltinFunctionType
from typing import Any, ClassVar, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.rows_of import rows_of

from shoal.data.importers import cifar10
from shoal.data.importers.cifar10 import open_cifar10, open_cifar100
from shoal.data.importers.cifar_pickle import as_pixels, read_pickle
from shoal.errors import DataError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
X = np.random.default_rng(0).integers(0, 256, (60, 3072), dtype=np.uint8)
Y = [int(label) for label in np.random.default_rng(1).integers(0, 10, 60)]

BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
"""Of ten rows each."""


_Pickler: Any = vars(pickle)["_Pickler"]  # the one in Python, which can be made to write so


class Python2Pickler(_Pickler):  # type: ignore[misc]
    """Write bytes as Python 2, which the original files were made with, wrote its strings."""

    dispatch: ClassVar[dict[type, Any]] = dict(_Pickler.dispatch)

    def save_bytes(self, value: bytes) -> None:
        if len(value) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(value)]) + value)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes

    def save_global(self, value: Any, name: str | None = None) -> None:
        module = str(value.__module__).replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{name or value.__name__}\n".encode())
        self.memoize(value)

    dispatch[type] = save_global
    dispatch[BuiltinFunctionType] = save_global


def python2(value: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, 2).dump(value)
    return file.getvalue()


def python3(value: object) -> bytes:
    return pickle.dumps(value, 2)


def pickled(dump: Callable[[object], bytes], order: str = "C") -> dict[str, bytes]:
    files = {
        name: dump(
            {
                b"batch_label": name.encode(),
                b"labels": Y[i * 10 : i * 10 + 10],
                b"data": np.array(X[i * 10 : i * 10 + 10], order=cast(Any, order)),
                b"filenames": [b"a.png"] * 10,
            }
        )
        for i, name in enumerate(BATCHES)
    }
    meta = {b"num_cases_per_batch": 10, b"label_names": [name.encode() for name in NAMES], b"num_vis": 3072}
    return {**files, "batches.meta": dump(meta), "readme.html": b"<html>"}


def binary() -> dict[str, bytes]:
    rows = [bytes([label]) + row.tobytes() for label, row in zip(Y, X, strict=True)]
    files = {f"{name}.bin": b"".join(rows[i * 10 : i * 10 + 10]) for i, name in enumerate(BATCHES)}
    return {**files, "batches.meta.txt": ("\n".join(NAMES) + "\n\n").encode()}


def save(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def pack(path: Path, folder: str, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in sorted(files, reverse=True):  # as in the originals, in no order that helps
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(files[name])
            archive.addfile(info, io.BytesIO(files[name]))
    return path


def check(src: Path) -> None:
    source = open_cifar10(src)
    assert (source.kind, source.shape, source.class_names) == ("cifar10", (3, 32, 32), NAMES)
    read = rows_of(source)
    assert np.array_equal(read.images["train"], X[:50].reshape(-1, 3, 32, 32))
    assert np.array_equal(read.images["test"], X[50:].reshape(-1, 3, 32, 32))
    assert read.labels["train"] is not None
    assert read.labels["test"] is not None
    assert read.labels["train"].tolist() + read.labels["test"].tolist() == Y


def test_what_the_pickles_of_python_2_look_like() -> None:
    data = python2({b"data": X[:2]})
    assert data.startswith(b"\x80\x02}q\x00U\x04data")
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in data
    assert b"T\x00\x18\x00\x00" + X[:2].tobytes() in data
    assert np.array_equal(cast(Any, pickle.loads(data, encoding="bytes"))[b"data"], X[:2])


@pytest.mark.parametrize("dump", [python2, python3])
@pytest.mark.parametrize("order", ["C", "F"])
def test_python_version(tmp_path: Path, dump: Callable[[object], bytes], order: str) -> None:
    folder = save(tmp_path / "cifar-10-batches-py", pickled(dump, order))
    check(folder)
    check(tmp_path)
    check(pack(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", pickled(dump, order)))


def test_binary_version(tmp_path: Path) -> None:
    check(save(tmp_path / "cifar-10-batches-bin", binary()))
    check(tmp_path)
    check(pack(tmp_path / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", binary()))


def test_files_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "PIECE_ROWS", 4)
    folder = save(tmp_path / "cifar-10-batches-bin", binary())
    check(folder)
    source = open_cifar10(folder)
    assert [len(rows) for rows in source.read(source.units[0])] == [4, 4, 2]


def test_cifar100(tmp_path: Path) -> None:
    names = [f"class_{i}" for i in range(100)]
    fine = [label * 9 for label in Y]
    files = {
        name: python2({b"fine_labels": fine[part], b"coarse_labels": Y[part], b"data": X[part]})
        for name, part in (("train", slice(50)), ("test", slice(50, 60)))
    }
    meta = python2({b"fine_label_names": [name.encode() for name in names], b"coarse_label_names": [b"x"] * 20})
    save(tmp_path / "cifar-100-python", {**files, "meta": meta})
    rows = [bytes([label, label * 9]) + row.tobytes() for label, row in zip(Y, X, strict=True)]
    binaries = {"train.bin": b"".join(rows[:50]), "test.bin": b"".join(rows[50:])}
    save(tmp_path / "cifar-100-binary", {**binaries, "fine_label_names.txt": "\n".join(names).encode()})
    for folder in ("cifar-100-python", "cifar-100-binary"):
        source = open_cifar100(tmp_path / folder)
        read = rows_of(source)
        assert (source.kind, source.class_names) == ("cifar100", names)
        assert np.array_equal(read.images["train"], X[:50].reshape(-1, 3, 32, 32))
        assert read.labels["train"] is not None
        assert read.labels["train"].tolist() == fine[:50]
        with pytest.raises(DataError, match=r"does not hold the files of cifar10; give the folder cifar-10-batches-py"):
            open_cifar10(tmp_path / folder)


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit('ran')",))


class Getattr:
    def __reduce__(self) -> tuple[object, ...]:
        return (getattr, (Path, "unlink"))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Evil(), "builtin.*exec"),
        ({b"data": [Evil()]}, "builtin.*exec"),
        (Getattr(), "builtin.*getattr"),
        (Path("a"), "pathlib"),
        (np.float64(1), "scalar"),
        (3 + 4j, "complex"),
    ],
)
def test_a_pickle_that_asks_for_more_is_refused(value: object, name: str, protocol: int) -> None:
    with pytest.raises(DataError, match=rf"x is not a pickle of CIFAR's: it asks for .*{name}.*; fetch it again"):
        read_pickle("x", pickle.dumps(value, protocol))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"c__main__\n__dict__\n.",
        b"cnumpy\nndarray\n}S'__module__'\nS'x'\nsb.",  # the state of a class
        b"c_codecs\nencode\n(N}S'text'\nS'x'\nstb.",
        b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR.",
        b"cnumpy\nndarray.__init__\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
        b"(lp0\nI1\na.",
        b"(dp0\nS'\xff'\nI1\ns.",
        b"(dp0\nI7\nI1\ns.",
        b"P1\n.",
        b"\x82\x01.",
        b"(dp0\n" + b"(" * 100_000,
    ],
)
def test_hostile_pickles(data: bytes) -> None:
    with pytest.raises(DataError, match=r"x is not a pickle of CIFAR's: .*; fetch it again"):
        read_pickle("x", data)


@given(st.binary(max_size=60))
def test_random_pickles(data: bytes) -> None:
    try:
        assert isinstance(read_pickle("x", b"\x80\x02" + data), dict)
    except DataError:
        return


@given(st.integers(0, len(python2({"data": X[:1, :9]})) - 1), st.integers(1, 255))
def test_damaged_pickles(position: int, change: int) -> None:
    data = bytearray(python2({b"data": X[:1, :9]}))
    data[position % len(data)] ^= change
    try:
        as_pixels("x", read_pickle("x", bytes(data)).get("data"))
    except DataError:
        return


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({b"data": X[:2]}, r"data_batch_2 has no labels; fetch it again"),
        ({}, r"has no data and no labels"),
        ({b"data": X[:2], b"labels": [1]}, r"has pixels \[2, 3072\] and 1 labels"),
        ({b"data": X[:2, :9], b"labels": [1, 2]}, r"has pixels \[2, 9\] and 2 labels"),
        ({b"data": X[:2], b"labels": [1, 10]}, r"has labels from 1 to 10, not 0 to 9"),
        ({b"data": X[:2], b"labels": [1, -1]}, r"has labels that are no class numbers"),
        ({b"data": X[:2], b"labels": [1, b"2"]}, r"has labels that are no class numbers"),
        ({b"data": X[:2].astype(np.float64), b"labels": [1, 2]}, r"its data is not an array of uint8 with two"),
        ({b"data": X[:2].reshape(-1), b"labels": [1, 2]}, r"its data is not an array of uint8 with two"),
        ({b"data": np.array([[Y]], object), b"labels": [1, 2]}, r"its data is not an array of uint8 with two"),
        ({b"data": X[:2].tolist(), b"labels": [1, 2]}, r"its data is not an array of uint8 with two"),
    ],
)
def test_batches_that_are_not_as_they_should_be(tmp_path: Path, batch: dict[bytes, object], message: str) -> None:
    folder = save(tmp_path / "cifar-10-batches-py", {**pickled(python2), "data_batch_2": python2(batch)})
    with pytest.raises(DataError, match=message):
        rows_of(open_cifar10(folder))


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent does not exist; give the folder cifar-10-batches-py or"):
        open_cifar10(tmp_path / "absent")
    files = binary()
    folder = save(tmp_path / "bin", {**files, "data_batch_1.bin": files["data_batch_1.bin"][:-1]})
    with pytest.raises(DataError, match=r"data_batch_1.bin has 30,729 bytes, which is no multiple of 3,073"):
        rows_of(open_cifar10(folder))
    (folder / "data_batch_1.bin").write_bytes(b"\x0a" + bytes(3072))
    with pytest.raises(DataError, match=r"data_batch_1.bin has labels from 10 to 10, not 0 to 9"):
        rows_of(open_cifar10(folder))
    source = open_cifar10(folder)
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"bin has data_batch_1.bin but not data_batch_4.bin; fetch it again"):
        open_cifar10(folder)
    with pytest.raises(DataError, match=r"data_batch_4.bin cannot be read"):
        list(source.read(source.units[3]))


def test_a_damaged_archive(tmp_path: Path) -> None:
    path = pack(tmp_path / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", binary())
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"tar.gz is not a whole tar file"):
        open_cifar10(path)
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"tar.gz is not a whole tar file"):
        open_cifar10(path)
