from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.data import DataSet
from shoal.data.importers.npz import import_npz
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
    import_npz(tmp_path / "a.npz", out)
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
        import_npz(tmp_path / "a.npz", out)
    assert not out.exists()


def test_files_that_are_no_npz(tmp_path: Path, out: Path) -> None:
    with pytest.raises(DataError, match=r"absent.npz does not exist"):
        import_npz(tmp_path / "absent.npz", out)
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(DataError, match=r"a.npy is a single .npy array; save it with np.savez"):
        import_npz(tmp_path / "a.npy", out)
    for content in (b"", b"hello", b"PK\x03\x04 broken"):
        (tmp_path / "b.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"b.npz is not readable as an .npz file"):
            import_npz(tmp_path / "b.npz", out)
