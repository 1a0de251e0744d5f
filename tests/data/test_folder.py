from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from shoal.data import DataSet
from shoal.data.importers.folder import import_folder
from shoal.data.importers.images import convert, decode
from shoal.errors import DataError

Save = Callable[..., Path]


@pytest.fixture
def src(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    return tmp_path / "src"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def save(src: Path) -> Save:
    """Save a plain image of a colour under a name in the source folder."""

    def write(name: str, color: object = (10, 20, 30), mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> Path:
        file = src / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, color).save(file)  # type: ignore[arg-type]  # any colour that the mode takes
        return file

    return write


def pixels(out: Path, split: str = "train") -> NDArray[np.uint8]:
    dataset = DataSet.open(out)
    return dataset.rows(split, 0, dataset.num_rows(split))


def test_splits_with_classes(src: Path, out: Path, save: Save) -> None:
    for number, name in enumerate(["train/cat/2.png", "train/cat/1.png", "train/ant/x/9.png", "test/cat/7.png"]):
        save(name, (number, 0, 0))
    manifest, skipped = import_folder(src, out)
    dataset = DataSet.open(out)
    assert (manifest.shape, skipped) == ((3, 4, 6), 0)
    assert dataset.splits == {"train": 3, "test": 1}
    assert dataset.class_names == ["ant", "cat"]
    assert pixels(out)[:, 0, 0, 0].tolist() == [2, 1, 0]
    train = dataset.labels("train")
    assert train is not None
    assert train.tolist() == [0, 1, 1]


def test_flat_splits_have_no_labels(src: Path, out: Path, save: Save) -> None:
    for name in ("train/a.png", "val/b.png", "test/c.JPG"):
        save(name)
    import_folder(src, out)
    dataset = DataSet.open(out)
    assert dataset.splits == {"train": 1, "val": 1, "test": 1}
    assert dataset.class_names is None


def test_classes_only(src: Path, out: Path, save: Save) -> None:
    for name in ("dog/a.png", "cat/b.jpeg", "dog/.hidden.png", ".git/c.png", "dog/notes.txt.png"):
        save(name)
    (src / "README.md").touch()
    (src / "empty").mkdir()
    import_folder(src, out, test_fraction=0)
    assert DataSet.open(out).class_names == ["cat", "dog"]
    assert DataSet.open(out).splits == {"train": 3}


def test_a_flat_folder_gets_a_test_split_that_stays(src: Path, out: Path, tmp_path: Path, save: Save) -> None:
    for number in range(60):
        save(f"{number:03}.png", number, "L")
    import_folder(src, out, test_fraction=0.2)
    held_out = pixels(out, "test")[:, 0, 0, 0].tolist()
    assert 3 <= len(held_out) <= 25
    assert sorted(held_out + pixels(out)[:, 0, 0, 0].tolist()) == list(range(60))
    for number in range(60, 90):
        save(f"{number:03}.png", number, "L")
    import_folder(src, tmp_path / "more", test_fraction=0.2)
    more = pixels(tmp_path / "more", "test")[:, 0, 0, 0].tolist()
    assert [number for number in more if number < 60] == held_out


def test_same_files_same_fingerprint(src: Path, tmp_path: Path, save: Save) -> None:
    for number in range(20):
        save(f"{number}.png", number, "L")
    one, _ = import_folder(src, tmp_path / "one")
    two, _ = import_folder(src, tmp_path / "two")
    assert one == two


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("1", 1, [255]),
        ("L", 77, [77]),
        ("LA", (100, 0), [255]),
        ("I;16", 65535, [255]),
        ("I;16", 257 * 40, [40]),
        ("RGB", (1, 2, 3), [1, 2, 3]),
        ("RGBA", (1, 2, 3, 255), [1, 2, 3]),
        ("RGBA", (255, 0, 0, 0), [255, 255, 255]),
        ("RGBA", (0, 100, 200, 51), [204, 224, 244]),
    ],
)
def test_modes_of_png(save: Save, mode: str, color: object, expected: list[int]) -> None:
    image = decode(save("a.png", color, mode), None, None)
    assert image.shape == (len(expected), 4, 6)
    assert image[:, 0, 0].tolist() == expected
    assert decode(save("a.png", color, mode), "RGB", None).shape == (3, 4, 6)
    assert decode(save("a.png", color, mode), "L", None).shape == (1, 4, 6)


def test_palette(src: Path) -> None:
    image = Image.new("P", (6, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(src / "a.png")
    assert decode(src / "a.png", None, None)[:, 0, 0].tolist() == [200, 100, 50]
    image.save(src / "b.png", transparency=1)
    assert decode(src / "b.png", None, None)[:, 0, 0].tolist() == [255, 255, 255]


def test_jpeg_grey_colour_and_cmyk(save: Save) -> None:
    assert abs(decode(save("a.jpg", (10, 200, 30)), None, None)[:, 0, 0].astype(int) - [10, 200, 30]).max() < 6
    assert decode(save("b.jpg", 99, "L"), None, None)[:, 0, 0].tolist() == [99]
    cyan = decode(save("c.jpg", (255, 0, 0, 0), "CMYK"), None, None)
    assert abs(cyan[:, 0, 0].astype(int) - [0, 255, 255]).max() < 6


def test_32_bit_grey() -> None:
    assert np.asarray(convert(Image.new("I", (2, 2), 70_000), None)).tolist() == [[255, 255], [255, 255]]


def test_orientation_is_applied(src: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (6, 4)).save(src / "a.jpg", exif=exif)
    assert decode(src / "a.jpg", None, None).shape == (3, 6, 4)


@pytest.mark.parametrize(("size", "shape"), [(8, (1, 8, 8)), ((3, 5), (1, 3, 5))])
def test_size_crops_the_centre_and_resizes(
    src: Path, out: Path, size: int | tuple[int, int], shape: tuple[int, int, int]
) -> None:
    wide = np.zeros((20, 60), np.uint8)
    wide[:, 20:40] = 200  # the centred square
    Image.fromarray(wide).save(src / "a.png")
    Image.new("L", (7, 90), 200).save(src / "b.png")
    manifest, _ = import_folder(src, out, size=size, test_fraction=0)
    assert manifest.shape == shape
    assert pixels(out)[1].min() == 200
    if size == 8:
        assert pixels(out)[0].min() >= 180  # the filter looks a little over the edge


def test_sizes_that_differ_are_refused_by_name(src: Path, out: Path, save: Save) -> None:
    save("a.png", size=(6, 4)), save("b.png", size=(6, 4)), save("c.png", size=(7, 9)), save("d.png", size=(1, 1))
    with pytest.raises(DataError, match=r"c.png has 9x7 pixels .* but .*a.png has 4x6; .* give --size 4"):
        import_folder(src, out, test_fraction=0)
    assert not out.exists()


def test_grey_and_colour(src: Path, out: Path, tmp_path: Path, save: Save) -> None:
    save("a.png", (1, 2, 3)), save("b.png", 9, "L")
    assert import_folder(src, out, test_fraction=0)[0].shape[0] == 3
    assert pixels(out)[:, :, 0, 0].tolist() == [[1, 2, 3], [9, 9, 9]]
    save("_.png", 9, "L")
    with pytest.raises(DataError, match=r"a.png has colour but .*_.png is grey; give --mode RGB, or --mode L"):
        import_folder(src, tmp_path / "two", test_fraction=0)
    assert import_folder(src, tmp_path / "grey", mode="L", test_fraction=0)[0].shape[0] == 1


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
@pytest.mark.parametrize("bad", ["a.png", "m.png", "m.jpg"])
def test_unreadable_files(src: Path, out: Path, save: Save, damage: str, bad: str) -> None:
    save("b.png"), save("z.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(src / bad)
    whole = (src / bad).read_bytes()
    (src / bad).write_bytes({"truncated": whole[: len(whole) // 2], "text": b"hello", "empty": b""}[damage])
    with pytest.raises(DataError, match=rf"{bad} cannot be read: .*; replace or delete it, or .* --skip-bad"):
        import_folder(src, out, test_fraction=0)
    assert not out.exists()
    manifest, skipped = import_folder(src, out, skip_bad=True, test_fraction=0)
    assert skipped == 1
    assert manifest.num_rows == 2


def test_nothing_readable(src: Path, out: Path) -> None:
    (src / "a.png").touch()
    with pytest.raises(DataError, match=r"none of the 1 image files, such as .*a.png, can be read"):
        import_folder(src, out, skip_bad=True)


def test_refused_sources(src: Path, out: Path, save: Save) -> None:
    with pytest.raises(DataError, match=r"absent is not a directory; give a folder of PNG or JPEG"):
        import_folder(src / "absent", out)
    (src / "notes.txt").touch()
    with pytest.raises(DataError, match=r"src has no image files \(.jpeg, .jpg, .png\)"):
        import_folder(src, out)
    save("a.png")
    with pytest.raises(DataError, match=r"test fraction 1 must be in \[0, 1\)"):
        import_folder(src, out, test_fraction=1)
    with pytest.raises(DataError, match=r"size 0x0 must be at least 1x1"):
        import_folder(src, out, size=0)
    with pytest.raises(DataError, match=r"mode 'HSV' is not known; give L for grey or RGB"):
        import_folder(src, out, mode="HSV")  # type: ignore[arg-type]  # what a command line may hand over
    save("cat/b.png")
    with pytest.raises(DataError, match=r"src has images \(a.png\) beside class folders \(cat\)"):
        import_folder(src, out)
    save("train/c.png")
    with pytest.raises(DataError, match=r"src has the splits train, and images in a.png beside them"):
        import_folder(src, out)
    assert not out.exists()


def test_an_existing_destination(src: Path, out: Path) -> None:
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(DataError, match="exists already"):
        import_folder(src / "absent", out)
