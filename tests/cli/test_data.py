"""``shoal data``: import with all its options, info, export."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shoal.data import DataSet
from shoal.data.importers import import_data
from shoal_ray.cli.data import importing

Shoal = Callable[..., Any]

X = np.random.default_rng(0).integers(0, 256, (3000, 200, 200), np.uint8)
"""As a data set: two shards."""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    np.savez(tmp_path / "some.npz", images=X, labels=np.arange(3000) % 3)
    return tmp_path / "some.npz"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def signalled(monkeypatch: pytest.MonkeyPatch, number: signal.Signals, after: int) -> None:
    """Have the next import receive a signal once so many images are done."""

    def interrupted(kind: str, src: Path, out: Path, **options: Any) -> Any:
        def progress(done: int, total: int | None) -> None:
            if done >= after:
                signal.raise_signal(number)

        return import_data(kind, src, out, **{**options, "progress": progress})

    monkeypatch.setattr(importing, "import_data", interrupted)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_import_goes_on(
    number: signal.Signals, code: int, shoal: Shoal, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        signalled(patch, number, after=2500)
        said = shoal("data", "import", "npz", archive, "--out", "images")
    assert said.code == code
    assert ".images.partial: the same command goes on from there, --fresh starts anew" in said.error
    assert names(tmp_path) == [".images.partial", "some.npz"]
    assert signal.getsignal(signal.SIGTERM) is before

    said = shoal("data", "import", "npz", archive, "--out", "images", "--limit", "7")
    assert said.code == 2
    assert "then limit=None; now limit=7" in said.error
    assert "--fresh" in said.error

    said = shoal("data", "import", "npz", archive, "--out", "images", "--jobs", "2")
    assert said.code == 0
    assert "going on from the " in said.error
    assert "3,000 images of 1x200x200 (train 3,000), 2 shards" in said.out
    assert names(tmp_path) == ["images", "some.npz"]
    assert np.array_equal(DataSet.open("images").rows("train", 1500, 3000)[:, 0], X[1500:])


def test_an_interrupted_import_can_be_thrown_away(
    shoal: Shoal, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGTERM, after=2500)
        shoal("data", "import", "npz", archive, "--out", "images")
    said = shoal("data", "import", "npz", archive, "--out", "images", "--limit", "7", "--fresh")
    assert (said.code, said.error) == (0, "")
    assert "7 images" in said.out
    assert names(tmp_path) == ["images", "some.npz"]


def test_sigterm_before_the_first_shard_leaves_nothing(
    shoal: Shoal, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signalled(monkeypatch, signal.SIGTERM, after=100)
    said = shoal("data", "import", "npz", archive, "--out", "images")
    assert (said.code, said.error) == (143, "")
    assert names(tmp_path) == ["some.npz"]


def test_split_limit_and_files_that_are_kept(shoal: Shoal, tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        (tmp_path / "images" / kind).mkdir(parents=True)
        for index in range(30):
            pixels = np.random.default_rng(index).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / kind / f"{index:02}.png")
    words = ("data", "import", "folder", "images", "--split", "train=0.5,val=0.5", "--keep-encoded")
    said = shoal(*words, "--out", "both")
    assert said.code == 0
    both = DataSet.open("both")
    assert list(both.splits) == ["train", "val"]
    assert sum(both.splits.values()) == 60
    for split in both.splits:  # both folders hold the same images
        labels = both.labels(split)
        assert labels is not None
        assert 2 * labels.sum() == len(labels)
    assert shoal(*words, "--limit", "35", "--out", "some").code == 0
    assert sum(DataSet.open("some").splits.values()) == 35

    facts = json.loads(shoal("data", "info", "both", "--json").out)
    assert facts["encoding"] == "encoded"
    assert facts["class_counts"]["val"] == dict.fromkeys(["cat", "dog"], both.splits["val"] // 2)
    shown = shoal("data", "info", "both").out
    assert "classes of train" in shown
    assert "50.00 %" in shown


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--split", "train=0.9,val=0.2"], ["--split train=0.9,val=0.2", "add up to 1.1", "e.g. train=0.9,val=0.1"]),
        (["--split", "test"], ["'test' is not NAME=SHARE"]),
        (["--limit", "0"], ["--limit 0 must be at least 1"]),
        (["--jobs", "0"], ["--jobs 0 must be at least 1"]),
        (["--size", "8"], ["importer npz takes no size", "class_names"]),
        (["--shape", "big"], ["--shape big is not C,H,W; give e.g. --shape 3,32,32"]),
    ],
)
def test_refused_options(words: list[str], parts: list[str], shoal: Shoal, archive: Path, tmp_path: Path) -> None:
    said = shoal("data", "import", "npz", archive, "--out", "images", *words)
    assert said.code == 2
    for part in parts:
        assert part in said.error
    assert names(tmp_path) == ["some.npz"]


def test_places_that_are_not_here(shoal: Shoal) -> None:
    said = shoal("data", "import", "npz", "some.npz", "--out", "s3://bucket/images")
    assert said.code == 2
    assert "--out s3://bucket/images is not on this machine; give a local path" in said.error
    said = shoal("data", "import", "npz", "s3://bucket/some.npz", "--out", "images")
    assert said.code == 2
    assert "SRC s3://bucket/some.npz is not on this machine" in said.error


@pytest.mark.parametrize("to", ["folder", "parquet"])
def test_export_and_import_again(to: str, shoal: Shoal, data: Path) -> None:
    assert shoal("data", "export", data, "--to", to, "--out", "out").code == 0
    assert shoal("data", "import", to, "out", "--out", "again").code == 0
    before, after = DataSet.open(data), DataSet.open("again")
    assert after.splits == before.splits == {"train": 64, "test": 32}
    for split, num in before.splits.items():
        assert np.array_equal(after.rows(split, 0, num), before.rows(split, 0, num))
    said = shoal("data", "export", data, "--to", to, "--out", "out")
    assert said.code == 2
    assert "exists already" in said.error
    said = shoal("data", "export", data, "--to", "foldr", "--out", "out2")
    assert said.code == 2
    assert "did you mean 'folder'" in said.error
