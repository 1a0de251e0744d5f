from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.data import DataSet
from shoal.data.importers import import_data, npz
from shoal.data.importers.npz import open_npz
from shoal.errors import DataError

X = np.random.default_rng(0).integers(0, 256, (30, 5, 6), dtype=np.uint8)
Y = (np.arange(30) % 10).astype(np.uint8)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("arrays", "splits", "shape"),
    [
        ({"images": X}, {"train": 30}, (1, 5, 6)),
        ({"images": X[..., None], "labels": Y}, {"train": 30}, (1, 5, 6)),
        ({"x_train": X, "y_train": Y[:, None], "x_test": X[:4], "y_test": Y[:4]}, {"train": 30, "test": 4}, (1, 5, 6)),
        (
            {"train_images": X, "val_images": X[:3], "test_images": X[:4]},
            {"train": 30, "val": 3, "test": 4},
            (1, 5, 6),
        ),
        ({"images": np.repeat(X[..., None], 3, -1)}, {"train": 30}, (3, 5, 6)),
        ({"images": np.repeat(X[:, None], 3, 1)}, {"train": 30}, (3, 5, 6)),
    ],
)
def test_npz(
    tmp_path: Path, out: Path, arrays: dict[str, Any], splits: dict[str, int], shape: tuple[int, int, int]
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    import_data("npz", tmp_path / "a.npz", out)
    dataset = DataSet.open(out)
    assert dataset.splits == splits
    assert dataset.shape == shape
    assert np.array_equal(dataset.rows("train", 0, 30)[:, -1], X)
    assert (dataset.class_names is None) == (dataset.labels("train") is None)
    labels = dataset.labels("train")
    if labels is not None:
        assert labels.tolist() == Y.tolist()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": X / 255}, r"a.npz: images is float64, images must be uint8 in 0 to 255; convert it first"),
        ({"pictures": X}, r"a.npz holds none of the known arrays; name them images and labels"),
        ({"images": X[0]}, r"shape \[5, 6\]: none of \[N, H, W\]"),
        ({"images": X.reshape(30, 5, 3, 2)}, r"shape \[30, 5, 3, 2\]: none of"),
        ({"images": X.reshape(30, 3, 10, 1)}, r"shape \[30, 3, 10, 1\]: both axes could be the channels"),
        ({"images": X, "labels": Y[:7]}, "30 images but 7 labels"),
        ({"images": X, "labels": Y / 2}, "labels is float64 of shape .* must be integers"),
        ({"images": X, "labels": np.full(30, 70_000)}, "label 70,000 is too large for a class number"),
        ({"images": X[:0]}, "has no images"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "has labels, but none for split test"),
        ({"images": np.array([X, None], object)}, "is not readable as an .npz file of plain arrays"),
    ],
)
def test_bad_npz(tmp_path: Path, out: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        import_data("npz", tmp_path / "a.npz", out)
    assert not out.exists()


def test_files_that_are_no_npz(tmp_path: Path, out: Path) -> None:
    with pytest.raises(DataError, match=r"absent.npz does not exist"):
        import_data("npz", tmp_path / "absent.npz", out)
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(DataError, match=r"a.npy is a single .npy array; save it with np.savez"):
        import_data("npz", tmp_path / "a.npy", out)
    for content in (b"", b"hello", b"PK\x03\x04 broken"):
        (tmp_path / "b.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"b.npz is not readable as an .npz file"):
            import_data("npz", tmp_path / "b.npz", out)
    whole = tmp_path / "c.npz"
    np.savez_compressed(whole, images=X)
    data = bytearray(whole.read_bytes())
    data[len(data) // 2] ^= 1
    whole.write_bytes(data)
    with pytest.raises(DataError, match=r"c.npz is not readable as an .npz file"):
        import_data("npz", whole, out)
    assert not out.exists()


def test_golden_fingerprint(tmp_path: Path, out: Path) -> None:
    # Pinned before archives were read in pieces: runs name their data set by it.
    np.savez(tmp_path / "a.npz", x_train=X, y_train=Y[:, None], x_test=X[:4], y_test=Y[:4])
    manifest, _ = import_data("npz", tmp_path / "a.npz", out, jobs=2)
    assert manifest.fingerprint == "18b9109a1435eb09e818aa7e8dd05d774c5f7e1ef9c1f2eeb4e77dc4a5a892a5"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Any, order: Any) -> None:
    monkeypatch.setattr(npz, "PIECE_BYTES", 4 * 30 + 7)
    save(tmp_path / "a.npz", images=np.asarray(X, order=order), labels=Y)
    source = open_npz(tmp_path / "a.npz")
    pieces = [rows for unit in source.units for rows in source.read(unit)]
    assert [len(rows) for rows in pieces] == ([4] * 7 + [2] if order == "C" else [30])
    assert np.array_equal(np.concatenate([np.asarray(rows.images) for rows in pieces])[:, 0], X)
    assert np.concatenate([np.asarray(rows.labels) for rows in pieces]).tolist() == Y.tolist()


def test_images_of_two_shapes(tmp_path: Path, out: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=X, x_test=X[:, :4])
    with pytest.raises(DataError, match=r"x_test holds images of shape \[1, 4, 6\], x_train of \[1, 5, 6\]"):
        import_data("npz", tmp_path / "a.npz", out)
