import json
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from shoal.data import DataSet
from shoal.data.export import export, parquet, pngs
from shoal.data.importers import import_data
from shoal.data.write import write_dataset
from shoal.errors import DataError

X = np.random.default_rng(0).integers(0, 256, (60, 3, 4, 5), dtype=np.uint8)

Make = Callable[..., DataSet]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write the images, 40 of train and 20 of test, with labels and class names."""

    def write(
        labels: NDArray[np.int64] | None,
        names: list[str] | None,
        splits: tuple[str, str] = ("train", "test"),
        images: NDArray[np.uint8] = X,
    ) -> DataSet:
        chunks = {
            name: [(images[part], None if labels is None else labels[part])]
            for name, part in zip(splits, (slice(40), slice(40, 60)), strict=True)
        }
        out = tmp_path / "data"
        write_dataset(out, chunks, shape=images.shape[1:], class_names=names, source="test")
        return DataSet.open(out)

    return write


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "dest"


ORDERED = np.repeat([0, 1, 0, 1], [25, 15, 12, 8])
MIXED = np.arange(60) % 3


def again(kind: str, dest: Path) -> DataSet:
    out = dest.parent / "again"
    import_data(kind, dest, out, test_fraction=0.0 if kind == "folder" else None)
    return DataSet.open(out)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labels", [ORDERED, None])
def test_an_import_of_the_export_is_the_same_data_set(
    make: Make, dest: Path, kind: str, channels: int, labels: NDArray[np.int64] | None
) -> None:
    data = make(labels, None if labels is None else ["ant", "bee"], images=X[:, :channels])
    done = export(data, dest, kind)  # type: ignore[arg-type]
    assert (done.num_images, done.differences) == (60, ())
    assert again(kind, dest).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("labels", "names"),
    [(MIXED, ["z", "a/b", ".."]), (np.arange(60) % 4 - 1, ["c", "b", "a"]), (MIXED, list("abcdef"))],
)
@pytest.mark.parametrize("splits", [("train", "test"), ("train", "extra"), ("test", "val")])
def test_parquet_keeps_everything(
    make: Make, dest: Path, labels: NDArray[np.int64], names: list[str], splits: tuple[str, str]
) -> None:
    data = make(labels, names, splits)
    export(data.path, dest, "parquet")
    back = again("parquet", dest)
    assert back.class_names == names
    for split in splits:
        one, two = data.labels(split), back.labels(split)
        assert one is not None
        assert two is not None
        assert np.array_equal(one, two)
        assert np.array_equal(data.rows(split, 0, len(one)), back.rows(split, 0, len(one)))
    if splits != ("test", "val"):  # which come back in the usual order
        assert back.fingerprint == data.fingerprint


def test_files_of_the_folder(make: Make, dest: Path) -> None:
    data = make(MIXED, ["ant", "bee", "cat"])
    done = export(data, dest, split="test[10%:]")
    files = sorted(file.relative_to(dest).as_posix() for file in dest.rglob("*.png"))
    assert done.num_images == len(files) == 18
    assert files[0] == "test/ant/000002.png"  # row 2 of the split, which is row 42 of the data set
    for row in range(2, 20):
        name = ["ant", "bee", "cat"][MIXED[40 + row]]
        with Image.open(dest / "test" / name / f"{row:06}.png") as image:
            assert np.array_equal(np.asarray(image).transpose(2, 0, 1), X[40 + row])


@pytest.mark.parametrize(
    ("labels", "names", "splits", "differences"),
    [
        (MIXED, ["a", "b", "c"], ("train", "test"), ["the rows come back ordered by class"]),
        (
            1 - ORDERED,
            ["b", "a"],
            ("train", "test"),
            ["the classes come back sorted by name, and numbered so: a, b"],
        ),
        (ORDERED, ["a", "b", "c"], ("train", "test"), ["classes without an image are lost: c"]),
        (None, None, ("test", "train"), ["the splits come back in the order train, test"]),
        (
            None,
            None,
            ("train", "extra"),
            ["split extra comes back as a class: the names of splits are train, val, test"],
        ),
    ],
)
def test_what_a_folder_does_not_say(
    make: Make,
    dest: Path,
    labels: NDArray[np.int64] | None,
    names: list[str] | None,
    splits: tuple[str, str],
    differences: list[str],
) -> None:
    data = make(labels, names, splits)
    assert export(data, dest, "folder").differences == tuple(differences)
    if splits == ("train", "test"):
        back = again("folder", dest)
        assert back.fingerprint != data.fingerprint
        assert labels is not None
        assert names is not None
        for split in splits:
            part = slice(40) if split == "train" else slice(40, 60)
            classes = [names[label] for label in labels[part]]
            order = sorted(range(len(classes)), key=lambda i: (classes[i], i))
            found = back.labels(split)
            assert found is not None
            assert back.class_names == sorted(set(classes))
            assert [back.class_names[label] for label in found] == [classes[i] for i in order]
            assert np.array_equal(back.rows(split, 0, len(order)), X[part][order])


def test_an_encoded_import_of_the_export_has_the_same_pixels(make: Make, dest: Path, tmp_path: Path) -> None:
    data = make(MIXED, ["ant", "bee", "cat"])
    export(data, dest, "parquet")
    import_data("parquet", dest, tmp_path / "encoded", keep_encoded=True)
    encoded = DataSet.open(tmp_path / "encoded")
    assert encoded.manifest.encoding == "encoded"
    assert np.array_equal(encoded.rows("train", 0, 40), X[:40])
    export(encoded, tmp_path / "dest-2", "parquet")
    import_data("parquet", tmp_path / "dest-2", tmp_path / "raw")
    assert DataSet.open(tmp_path / "raw").fingerprint == data.fingerprint


def test_train_alone_would_be_divided(make: Make, dest: Path) -> None:
    (difference,) = export(make(None, None), dest, split="train").differences
    assert "--test-fraction 0" in difference
    import_data("folder", dest, dest.parent / "again")
    assert set(DataSet.open(dest.parent / "again").splits) == {"train", "test"}


def test_files_of_the_hub(make: Make, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "FILE_BYTES", 16 * 60)
    monkeypatch.setattr(pngs, "PIECE_BYTES", 5 * 60)
    data = make(MIXED, ["ant", "bee", "cat"])
    progress: list[int] = []
    export(data, dest, "parquet", progress=progress.append)
    assert sorted(file.name for file in dest.iterdir()) == [
        *(f"test-{number:05}-of-00002.parquet" for number in range(2)),
        *(f"train-{number:05}-of-00003.parquet" for number in range(3)),
    ]
    assert progress[-1] == 60
    assert progress == sorted(set(progress))
    file = pq.ParquetFile(dest / "train-00001-of-00003.parquet")
    rows = file.read().to_pylist()
    assert [file.metadata.row_group(i).num_rows for i in range(3)] == [5, 5, 3]
    assert file.schema_arrow.field("label").type == "int64"
    features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert features == {"image": {"_type": "Image"}, "label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}
    assert [row["image"]["path"] for row in rows] == [f"{row:06}.png" for row in range(13, 26)]
    assert [row["label"] for row in rows] == MIXED[13:26].tolist()
    assert again("parquet", dest).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("..", r"class name '..' cannot be the name of a folder"),
        (".hidden", r"class name '.hidden' cannot be"),
        ("a/../../b", r"class name 'a/../../b' cannot be"),
        ("", r"class name '' cannot be"),
        ("a\0", r"class name 'a\\x00' cannot be"),
        ("é" * 128, r"class name 'é+'… has 256 bytes, and a folder's at most 255; export to parquet"),
        ("ANT", r"classes 'ant' and 'ANT' are one folder on some file systems"),
    ],
)
def test_names_that_no_folder_can_have(make: Make, dest: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        export(make(ORDERED, ["ant", name]), dest)
    assert not dest.exists()


def test_refused(make: Make, dest: Path, tmp_path: Path) -> None:
    data = make(np.arange(60) % 3 - 1, ["a", "b"])
    with pytest.raises(DataError, match=r"14 images of split 'train' have no label, .* export to parquet"):
        export(data, dest)
    with pytest.raises(
        DataError, match=r"no export to 'parket' \(did you mean 'parquet'\?\); choose folder or parquet"
    ):
        export(data, dest, "parket")  # type: ignore[arg-type]  # what a command line may hand over
    with pytest.raises(DataError, match=r"has no split 'tests' \(did you mean 'test'\?\)"):
        export(data, dest, "parquet", split="tests")
    dest.mkdir()
    (dest / "mine").touch()
    with pytest.raises(DataError, match=r"dest exists already and is never overwritten"):
        export(data, dest, "parquet")
    write_dataset(tmp_path / "two", {"train": [(X[:, :2], None)]}, shape=(2, 4, 5), class_names=None, source="test")
    with pytest.raises(DataError, match=r"images of 2 channels are no PNG"):
        export(tmp_path / "two", tmp_path / "other")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data", "dest", "two"]


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_a_damaged_data_set_leaves_nothing(
    make: Make, dest: Path, kind: str, damage: Callable[[Path, int], None]
) -> None:
    data = make(ORDERED, ["a", "b"])
    damage(data.path / "shard-00001.arrow", 800)
    with pytest.raises(DataError, match=r"shard-00001.arrow"):
        export(data, dest, kind)  # type: ignore[arg-type]
    assert [file.name for file in dest.parent.iterdir()] == ["data"]


def test_files_can_be_read_by_others(make: Make, dest: Path) -> None:
    export(make(None, None), dest)
    assert stat.S_IMODE(dest.stat().st_mode) == stat.S_IMODE((dest / "train").stat().st_mode)
