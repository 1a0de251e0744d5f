import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from shoal.data.importers.source import Rows
from shoal.data.importers.splitting import Shares, parse_shares
from shoal.errors import DataError


def noise(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, 1, 2, 3), np.uint8)


@pytest.mark.parametrize("encoded", [False, True])
def test_a_row_goes_where_its_hash_says(encoded: bool) -> None:
    pixels = noise(300)
    files = [row.tobytes() for row in pixels]
    rows = Rows("train", files if encoded else pixels, np.arange(300), num_skipped=2)
    parts = Shares({"a": 0.5, "b": 0.25, "c": 0.25}).divide(rows)
    assert [part.split for part in parts] == ["a", "b", "c"]
    for part, low, high in zip(parts, (0, 1 << 63, 3 << 62), (1 << 63, 3 << 62, 1 << 64), strict=True):
        expected = [i for i, file in enumerate(files) if low <= xxhash.xxh3_64_intdigest(file) < high]
        assert part.labels is not None
        assert part.labels.tolist() == expected
        got = list(part.images) if encoded else [row.tobytes() for row in np.asarray(part.images)]
        assert got == [files[i] for i in expected]


@given(cuts=st.lists(st.integers(0, 60), max_size=4))
def test_the_cut_into_pieces_changes_nothing(cuts: list[int]) -> None:
    pixels = noise(60)
    shares = Shares({"train": 0.7, "val": 0.3})
    whole = {part.split: np.asarray(part.images) for part in shares.divide(Rows("train", pixels))}
    pieces: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    for piece in np.split(pixels, sorted(cuts)):
        for part in shares.divide(Rows("train", piece)):
            pieces[part.split].append(np.asarray(part.images))
    for split, images in whole.items():
        assert np.array_equal(np.concatenate(pieces[split]), images)


def test_shares_come_out() -> None:
    parts = Shares({"train": 0.9, "val": 0.1}).divide(Rows("train", noise(5000)))
    assert abs(len(parts[1]) - 500) < 4 * (5000 * 0.9 * 0.1) ** 0.5


def test_equal_images_stay_together() -> None:
    images = np.repeat(noise(40), 5, axis=0)
    for part in Shares({"train": 0.5, "val": 0.5}).divide(Rows("train", images)):
        _, counts = np.unique(np.asarray(part.images).reshape(len(part), -1), axis=0, return_counts=True)
        assert (counts % 5 == 0).all()


def test_other_splits_pass_through() -> None:
    rows = Rows("test", noise(3))
    assert Shares({"train": 0.5, "val": 0.5}).divide(rows) == [rows]
    assert Shares({"a": 0.5, "b": 0.5}).splits_of(["train", "test"]) == ["a", "b", "test"]


def test_one_share_is_all() -> None:
    (part,) = Shares({"all": 1.0}).divide(Rows("train", noise(50)))
    assert (part.split, len(part)) == ("all", 50)


def test_parse() -> None:
    assert parse_shares("train=0.9, val=0.1").by_name == {"train": 0.9, "val": 0.1}
    assert parse_shares("a=.7,b=.1,c=.1,d=.1").by_name == {"a": 0.7, "b": 0.1, "c": 0.1, "d": 0.1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train=0.9,val=0.2", r"--split train=0.9,val=0.2: the shares add up to 1.1, not to 1; e.g. train=0.9"),
        ("train=0.9,val=0.100001", "add up to 1"),
        ("train=1.5,val=-0.5", r"the share 1.5 of train must be above 0 and at most 1"),
        ("train=1,val=0", "the share 0 of val must be above 0"),
        ("train", r"'train' is not NAME=SHARE; give e.g. train=0.9,val=0.1"),
        ("train=much,val=0.1", "'train=much' is not NAME=SHARE"),
        ("train=nan,val=0.1", "'train=nan' is not NAME=SHARE"),
        ("train=0.9,train=0.1", "'train' is there twice; name each split once"),
        ("../x=0.9,val=0.1", r"'../x' is no name for a split; use a letter, then"),
        ("train=0.9,=0.1", "'' is no name for a split"),
        ("", "'' is not NAME=SHARE"),
    ],
)
def test_shares_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_shares(text)


def test_splits_that_are_refused() -> None:
    shares = parse_shares("train=0.9,val=0.1")
    with pytest.raises(DataError, match=r"the source has a split 'val' of its own; choose another name"):
        shares.splits_of(["train", "val"])
    with pytest.raises(DataError, match=r"--split divides 'train', but the source has all, test; leave it out"):
        shares.splits_of(["all", "test"])
