from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.data.importers.splits import expand_braces, find_files
from shoal.errors import DataError


@pytest.fixture
def src(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    return tmp_path / "src"


def found(src: Path, *names: str) -> list[tuple[str, str]]:
    for name in names:
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).touch()
    return [(item.split, item.file.relative_to(src).as_posix()) for item in find_files(src, (".tar",))]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00003.tar", "train"),
        ("validation-00000-of-00001-abcdef0123.tar", "val"),
        ("imagenet1k-test-0007.tar", "test"),
        ("Dev.tar", "val"),
        ("x/train/0000.tar", "train"),
        ("train/validation/0000.tar", "val"),
        ("train/test_0000.tar", "test"),
        ("latest-0000.tar", "train"),
        ("cifar-00000-of-00003.tar", "train"),
    ],
)
def test_the_split_that_a_name_says(src: Path, name: str, split: str) -> None:
    assert found(src, name) == [(split, name)]


def test_order_of_splits_and_files(src: Path) -> None:
    names = ["b/test-1.tar", "extra-00000-of-00001.tar", "train-1.tar", "a/train-0.tar", "valid.tar", "notes.txt"]
    assert found(src, *names, ".hidden/train-9.tar", ".train-8.tar") == [
        ("train", "a/train-0.tar"),
        ("train", "train-1.tar"),
        ("val", "valid.tar"),
        ("test", "b/test-1.tar"),
        ("extra", "extra-00000-of-00001.tar"),
    ]


def test_a_folder_above_says_nothing(src: Path) -> None:
    assert found(src / "test" / "validation", "0.tar") == [("train", "0.tar")]
    assert [item.split for item in find_files(src / "test" / "validation" / "0.tar", (".tar",))] == ["train"]


def test_refused(src: Path) -> None:
    with pytest.raises(DataError, match=r"absent.tar does not exist; give a .tar file, a folder of them"):
        find_files(src / "absent.tar", (".tar",))
    with pytest.raises(DataError, match=r"src has no .tar or .tgz files"):
        find_files(src, (".tar", ".tgz"))
    with pytest.raises(DataError, match=r"train-test.tar says the splits train and test; rename it"):
        found(src, "train-test.tar")
    (src / "train-test.tar").unlink()
    with pytest.raises(DataError, match=r"more.tar says no split .*, but .*train.tar does \('train'\); rename it"):
        found(src, "train.tar", "more.tar")


def test_patterns(src: Path) -> None:
    found(src, *(f"{split}-{i:03}.tar" for split in ("train", "val") for i in range(8, 12)))
    files = find_files(src / "{val,train}-{008..011}.tar", (".tar",))
    assert [item.file.name for item in files] == [f"{s}-{i:03}.tar" for s in ("train", "val") for i in range(8, 12)]
    with pytest.raises(
        DataError, match=r"train-012.tar, one of the 5 that .*train-\{008..012\}.tar stands for, does not"
    ):
        find_files(src / "train-{008..012}.tar", (".tar",))
    (src / "{0..1}.tar").touch()
    assert [item.file.name for item in find_files(src / "{0..1}.tar", (".tar",))] == ["{0..1}.tar"]
    with pytest.raises(DataError, match="more than 1,000,000 files"):
        find_files(src / "{0..999}-{0..1000}.tar", (".tar",))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a", ["a"]),
        ("{a}{}", ["{a}{}"]),
        ("x{8..11}", ["x8", "x9", "x10", "x11"]),
        ("x{08..11}", ["x08", "x09", "x10", "x11"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,,b}-{1..2}", ["a-1", "a-2", "-1", "-2", "b-1", "b-2"]),
    ],
)
def test_braces(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


@given(
    st.lists(
        st.tuples(st.text("ab-.", max_size=3), st.integers(0, 120), st.integers(0, 9), st.integers(1, 4)), max_size=2
    )
)
def test_braces_are_all_combinations(parts: list[tuple[str, int, int, int]]) -> None:
    pattern = "".join(f"{text}{{{first:0{width}}..{first + num:0{width}}}}" for text, first, num, width in parts)
    ranges = [[f"{text}{i:0{width}}" for i in range(first, first + num + 1)] for text, first, num, width in parts]
    unpadded = [width > len(str(first)) for _, first, _, width in parts]
    if all(unpadded):  # where the width says that there are leading zeros
        assert expand_braces(pattern) == ["".join(words) for words in product(*ranges)]
    else:
        assert len(expand_braces(pattern)) == len(list(product(*ranges)))
