import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.data.rows_of import rows_of

from shoal.data.importers import image_files, parquet
from shoal.data.importers.parquet import open_parquet
from shoal.data.importers.parquet_columns import pixels_of
from shoal.errors import DataError

X = np.random.default_rng(0).integers(0, 256, (40, 3, 4, 5), dtype=np.uint8)
Y = np.arange(40) % 3
STRUCT = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])

Write = Callable[..., Path]


def png(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))).save(file, "PNG")
    return file.getvalue()


FILES = [png(image) for image in X]


@pytest.fixture
def src(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    return tmp_path / "src"


@pytest.fixture
def write(src: Path) -> Write:
    def save(name: str, group: int = 7, metadata: object = None, **columns: Any) -> Path:
        file = src / name
        file.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table(columns)
        if metadata is not None:
            table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
        pq.write_table(table, file, row_group_size=group)
        return file

    return save


def structs(files: list[bytes | None]) -> pa.Array:
    return pa.array([None if file is None else {"bytes": file, "path": "a.png"} for file in files], STRUCT)


def flat(images: NDArray[np.uint8]) -> pa.Array:
    rows = images.reshape(len(images), -1)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(rows.shape[1]), len(rows), [None, pa.py_buffer(rows)])


def lists(images: NDArray[Any], fixed: bool = True) -> pa.Array:
    column = pa.array(images.reshape(-1))
    for size in reversed(images.shape[1:]):
        if fixed:
            column = pa.FixedSizeListArray.from_arrays(column, size)
        else:
            column = pa.ListArray.from_arrays(pa.array(range(0, len(column) + 1, size), pa.int32()), column)
    return column


def test_the_layout_of_the_hub(src: Path, write: Write) -> None:
    names = {
        "info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list("zya")}}}
    }
    for i, (name, start, stop) in enumerate(
        [("train-00000-of-00002", 0, 20), ("train-00001-of-00002", 20, 30), ("validation-00000-of-00001", 30, 40)]
    ):
        file = f"data/{name}-0123456789abcdef.parquet"
        write(file, metadata=names, image=structs(list(FILES[start:stop])), label=pa.array(Y[start:stop]))
        assert (src / file).is_file(), i
    source = open_parquet(src)
    assert (source.kind, source.shape, source.encoded, source.num_rows) == ("parquet", (3, 4, 5), False, 40)
    assert (source.class_names, source.splits) == (["z", "y", "a"], ["train", "val"])
    assert [unit.rows for unit in source.units] == [7, 7, 6, 7, 3, 7, 3]
    read = rows_of(source)
    assert np.array_equal(read.images["train"], X[:30])
    assert np.array_equal(read.images["val"], X[30:])
    assert read.labels["train"] is not None
    assert read.labels["train"].tolist() == Y[:30].tolist()


@pytest.mark.parametrize(
    ("column", "options"),
    [
        (pa.array(FILES, pa.binary()), {}),
        (pa.array(FILES, pa.large_binary()), {}),
        (flat(X), {"shape": (3, 4, 5)}),
        (pa.array([image.tobytes() for image in X], pa.binary()), {"shape": (3, 4, 5)}),
        (lists(X), {}),
        (lists(X.transpose(0, 2, 3, 1)), {}),
        (lists(X.reshape(40, 60)), {"shape": (3, 4, 5)}),
        (lists(X.reshape(40, 60), fixed=False), {"shape": (3, 4, 5)}),
        (lists(X, fixed=False), {}),
        (lists(X.astype(np.int64)), {}),
        (lists(X.astype(np.int16), fixed=False), {}),
        (pa.FixedShapeTensorArray.from_numpy_ndarray(X), {"shape": (3, 4, 5)}),
    ],
    ids=["png", "large", "fsb", "bytes", "chw", "hwc", "flat", "flat-list", "lists", "int64", "int16", "tensor"],
)
def test_kinds_of_images(write: Write, column: pa.Array, options: dict[str, Any]) -> None:
    read = rows_of(open_parquet(write("a.parquet", pixels=column), **options))
    assert np.array_equal(read.images["train"], X)
    assert read.labels["train"] is None


def test_grey_sizes_without_channels(write: Write) -> None:
    source = open_parquet(write("a.parquet", pixels=lists(X[:, 0])))
    assert source.shape == (1, 4, 5)
    assert np.array_equal(rows_of(source).images["train"], X[:, :1])


@pytest.mark.parametrize(
    ("column", "names", "numbers"),
    [
        (pa.array(["b", "a", None, "b"]), ["a", "b"], [1, 0, -1, 1]),
        (pa.array(["b", "a", None, "b"]).dictionary_encode(), ["a", "b"], [1, 0, -1, 1]),
        (pa.array(["b", "a", "b", "c"], pa.large_string()), ["a", "b", "c"], [1, 0, 1, 2]),
        (pa.array([2, 0, None, -1], pa.int8()), ["0", "1", "2"], [2, 0, -1, -1]),
        (pa.array([1, 0, 1, 1], pa.uint64()), ["0", "1"], [1, 0, 1, 1]),
    ],
)
def test_labels_without_names(write: Write, column: pa.Array, names: list[str], numbers: list[int]) -> None:
    source = open_parquet(write("a.parquet", group=2, image=pa.array(FILES[:4]), label=column))
    assert source.class_names == names
    labels = rows_of(source).labels["train"]
    assert labels is not None
    assert labels.tolist() == numbers


def test_strings_are_numbered_alike_in_all_files(src: Path, write: Write) -> None:
    write("train/0000.parquet", image=pa.array(FILES[:2]), label=pa.array(["c", "b"]))
    write("test/0000.parquet", image=pa.array(FILES[2:4]), label=pa.array(["a", "c"]))
    source = open_parquet(src)
    labels = rows_of(source).labels
    assert source.class_names == ["a", "b", "c"]
    assert {split: found.tolist() for split, found in labels.items() if found is not None} == {
        "train": [2, 1],
        "test": [0, 2],
    }


def test_a_file_without_the_label_column_has_no_labels(src: Path, write: Write) -> None:
    write("train.parquet", image=pa.array(FILES[:2]), label=pa.array([1, 0]))
    write("test.parquet", image=pa.array(FILES[2:4]))
    labels = rows_of(open_parquet(src)).labels["test"]
    assert labels is not None
    assert labels.tolist() == [-1, -1]


def test_columns_are_chosen_by_name_or_given(write: Write) -> None:
    file = write(
        "a.parquet", mask=pa.array(FILES[20:]), img=pa.array(FILES[:20]), y=pa.array(Y[:20]), z=pa.array(Y[20:])
    )
    read = rows_of(open_parquet(file))
    assert np.array_equal(read.images["train"], X[:20])
    assert read.labels["train"] is not None
    read = rows_of(open_parquet(file, image_column="mask", label_column="z"))
    assert np.array_equal(read.images["train"], X[20:])
    assert read.labels["train"] is not None
    assert read.labels["train"].tolist() == Y[20:].tolist()
    assert open_parquet(file, label_column="none").class_names is None


def test_a_column_that_the_hub_calls_a_class_label(write: Write) -> None:
    metadata = {"info": {"features": {"digit": {"_type": "ClassLabel", "names": {"1": "b", "0": "a", "2": "c"}}}}}
    file = write("a.parquet", metadata=metadata, image=pa.array(FILES), digit=pa.array(Y))
    assert open_parquet(file).class_names == ["a", "b", "c"]


@pytest.mark.parametrize("metadata", [[], {"info": None}, {"info": {"features": {"label": {"_type": "ClassLabel"}}}}])
def test_metadata_that_names_nothing(write: Write, metadata: object) -> None:
    file = write("a.parquet", metadata=metadata, image=pa.array(FILES), label=pa.array(Y))
    assert open_parquet(file).class_names == ["0", "1", "2"]


def test_a_large_row_group_comes_in_pieces(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "PIECE_BYTES", 300)
    monkeypatch.setattr(image_files, "PIECE_BYTES", 300)
    for file, options in (
        (write("a.parquet", group=40, image=structs(list(FILES))), {}),
        (write("b.parquet", group=40, image=flat(X)), {"shape": (3, 4, 5)}),
        (write("c.parquet", group=40, image=flat(X * 0)), {"shape": (3, 4, 5)}),  # a page of almost nothing
    ):
        source = open_parquet(file, **options)  # type: ignore[arg-type]
        read = rows_of(source)
        assert len(source.units) == 1
        assert len(read.images["train"]) == 40
        assert 60 < read.piece_bytes <= 300


def test_files_of_other_sizes(write: Write) -> None:
    big = png(np.full((1, 8, 16), 9, np.uint8))
    file = write("a.parquet", group=2, image=structs([FILES[0], FILES[1], big]))
    with pytest.raises(
        DataError, match=r"a.parquet: row 0 of row group 1 has 8x16 .* row 0 of row group 0 has 4x5; .*4"
    ):
        rows_of(open_parquet(file))
    source = open_parquet(file, size=(2, 3), mode="L")
    assert source.shape == (1, 2, 3)
    assert (rows_of(source).images["train"][2] == 9).all()
    with pytest.raises(DataError, match=r"size 4 would change the files that keep_encoded keeps"):
        open_parquet(file, size=4, keep_encoded=True)


@pytest.mark.parametrize(
    ("bad", "why"), [(None, "it is missing"), (b"", "not a PNG"), (FILES[3][:-30], ""), (b"hello", "not a PNG")]
)
@pytest.mark.parametrize("keep_encoded", [False, True])
@pytest.mark.parametrize("place", [0, 2, 5])
def test_unreadable_files(write: Write, bad: bytes | None, why: str, keep_encoded: bool, place: int) -> None:
    files: list[bytes | None] = [*FILES[:place], bad, *FILES[place:5]]
    path = write("a.parquet", group=3, image=structs(files), label=pa.array(range(6)))
    with pytest.raises(
        DataError, match=rf"row {place % 3} of row group {place // 3} cannot be read: .*{why}.*--skip-bad"
    ):
        rows_of(open_parquet(path, keep_encoded=keep_encoded))
    source = open_parquet(path, skip_bad=True, keep_encoded=keep_encoded)
    read = rows_of(source)
    assert (read.num_skipped, source.num_rows) == (1, None)
    assert read.images["train"] == FILES[:5] if keep_encoded else np.array_equal(read.images["train"], X[:5])
    assert read.labels["train"] is not None
    assert read.labels["train"].tolist() == [i for i in range(6) if i != place]


@pytest.mark.parametrize("place", [0, 2])
def test_pixels_that_are_missing(write: Write, place: int) -> None:
    values = [image.tolist() for image in X[:4, 0]]
    values[place] = None
    column = pa.array(values, pa.list_(pa.list_(pa.uint8(), 5), 4))
    file = write("a.parquet", image=column, label=pa.array(range(4)))
    with pytest.raises(DataError, match=r"rows 0 to 3 of row group 0 have 1 rows without an image"):
        rows_of(open_parquet(file))
    read = rows_of(open_parquet(file, skip_bad=True))
    assert np.array_equal(read.images["train"], np.delete(X[:4, :1], place, 0))
    assert read.num_skipped == 1
    assert read.labels["train"] is not None
    assert place not in read.labels["train"]


def test_files_are_kept(write: Write) -> None:
    source = open_parquet(write("a.parquet", image=structs(list(FILES)), label=pa.array(Y)), keep_encoded=True)
    assert (source.encoded, source.shape) == (True, (3, 4, 5))
    assert rows_of(source).images["train"] == FILES


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            {"image": pa.array(FILES)},
            {"image_column": "imagee"},
            r"no column 'imagee' \(did you mean 'image'\?\); it has",
        ),
        ({"image": pa.array(FILES)}, {"label_column": "x"}, r"no column 'x'; it has 'image' \(binary\)"),
        ({"image": pa.array(["a.png"])}, {}, r"has no column 'image' of image files"),
        ({"image": pa.array(["a.png"])}, {"image_column": "image"}, r"column 'image' of .* is string; images must be"),
        ({"a": pa.array(FILES), "b": pa.array(FILES)}, {}, r"has 2 columns that could be .* --image-column a or b"),
        (
            {"image": pa.array(FILES), "label": pa.array([0.5] * 40)},
            {"label_column": "label"},
            r"is double; labels must",
        ),
        ({"image": pa.array(FILES), "label": pa.array([-2] * 40)}, {}, r"'label' has the label -2; .* from 0"),
        ({"image": pa.array(FILES), "label": pa.array([70_000] * 40)}, {}, r"label 70,000 is too large"),
        ({"image": flat(X)}, {}, r"images of 60 values: .* give the shape .*--shape C,H,W"),
        ({"image": flat(X[:, :, :, :4])}, {}, r"--shape 3,4,4"),
        ({"image": flat(X)}, {"shape": (3, 4, 4)}, r"images of 60 values do not have the shape \[3, 4, 4\]"),
        ({"image": flat(X)}, {"shape": (3, 4)}, r"shape \[3, 4\] must be channels, height and width"),
        ({"image": flat(X)}, {"size": 4, "mode": "L"}, r"holds pixels, and size and mode is for image files"),
        ({"image": flat(X)}, {"keep_encoded": True, "shape": (3, 4, 5)}, r"keep_encoded is for image files"),
        ({"image": structs(list(FILES))}, {"shape": (3, 4, 5)}, r"files have a shape of their own"),
        ({"image": lists(X[:, :, :, :3])}, {}, r"images of 3 x 4 x 3 values: either end could be the channels"),
        ({"image": lists(X)}, {"shape": (4, 3, 5)}, r"images of \[3, 4, 5\] do not have the shape \[4, 3, 5\]"),
        ({"image": lists(X + 0.5)}, {}, r"has no column 'image'"),
        ({"image": lists(X.astype(np.int64) + 100)}, {}, r"values that are not pixels, 0 to 255"),
        ({"image": pa.array([[1, 2], [3]], pa.list_(pa.uint8()))}, {"shape": (1, 1, 2)}, r"lists of 2 and 1 values"),
        ({"image": pa.array([[1, None]], pa.list_(pa.uint8()))}, {"shape": (1, 1, 2)}, r"pixels without a value"),
        ({"image": pa.array([b"ab", b"abc"])}, {"shape": (1, 1, 2)}, r"images of 2 and 3 bytes; all need one size"),
        ({"image": pa.array([], pa.binary())}, {}, r"has no rows; give Parquet files that have some"),
        ({"image": pa.array([None, None], pa.binary())}, {"skip_bad": True}, r"none of its 2 images can be read"),
    ],
)
def test_refused(write: Write, columns: dict[str, pa.Array], options: dict[str, Any], message: str) -> None:
    file = write("a.parquet", **columns)
    with pytest.raises(DataError, match=message):
        rows_of(open_parquet(file, **options))


def test_labels_beyond_the_names(write: Write) -> None:
    metadata = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}}}
    file = write("a.parquet", metadata=metadata, image=pa.array(FILES), label=pa.array(Y))
    with pytest.raises(
        DataError, match=r"rows 0 to 6 of row group 0 has labels from 0 to 2, but 2 classes are numbered"
    ):
        rows_of(open_parquet(file))


def test_files_that_differ(src: Path, write: Write) -> None:
    write("a.parquet", image=pa.array(FILES), label=pa.array(Y))
    other = write("b.parquet", image=structs(list(FILES)), label=pa.array(Y))
    with pytest.raises(DataError, match=r"column 'image' of .*b.parquet is struct.* but of the first file binary"):
        open_parquet(src)
    metadata = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "b", "c"]}}}}
    write("b.parquet", metadata=metadata, image=pa.array(FILES), label=pa.array(Y))
    with pytest.raises(DataError, match=r"b.parquet names the classes of 'label' unlike the first file"):
        open_parquet(src)
    other.write_bytes(b"PAR1 hello PAR1")
    with pytest.raises(DataError, match=r"b.parquet is not readable as a Parquet file: .*; fetch it again"):
        open_parquet(src)


def test_damage_within(write: Write) -> None:
    file = write("a.parquet", image=flat(X[:10]))
    data = bytearray(file.read_bytes())
    data[4:40] = bytes(36)
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"a.parquet is not readable as a Parquet file"):
        rows_of(open_parquet(file, shape=(3, 4, 5)))
    file.write_bytes(data[:-20])
    with pytest.raises(DataError, match=r"a.parquet is not readable as a Parquet file"):
        open_parquet(file)


def test_pixels_of_a_slice() -> None:
    for column in (
        flat(X),
        pa.array([image.tobytes() for image in X]),
        lists(X.reshape(40, 60)),
        lists(X, fixed=False),
    ):
        assert np.array_equal(pixels_of("x", column[7:9]).reshape(2, 3, 4, 5), X[7:9])


def test_classes_are_sorted(write: Write) -> None:
    names = [f"class-{number:02}" for number in range(40)]
    file = write("a.parquet", image=pa.array(FILES), label=pa.array(names[::-1]))
    assert open_parquet(file).class_names == names
