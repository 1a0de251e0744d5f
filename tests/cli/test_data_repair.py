"""``shoal data verify`` and ``shoal data repair``: what they say, and how they end."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.data import DataSet
from shoal.data.write import write_dataset

Shoal = Callable[..., Any]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (24, 1, 8, 8), dtype=np.uint8)
    write_dataset(
        tmp_path / "whole",
        {"all": [(images, np.arange(24) % 2)]},
        shape=(1, 8, 8),
        class_names=["a", "b"],
        source="test",
        rows_per_block=4,
        shard_bytes=8 * 64,
    )
    return tmp_path / "whole"


@pytest.fixture
def damaged(whole: Path, tmp_path: Path) -> Path:
    path = Path(shutil.copytree(whole, tmp_path / "damaged"))
    content = bytearray((path / "shard-00001.arrow").read_bytes())
    content[content.index(DataSet.open(whole).rows("all", 13, 14).tobytes())] ^= 1
    (path / "shard-00001.arrow").write_bytes(content)
    (path / "labels.arrow").unlink()
    return path


def test_a_whole_data_set(shoal: Shoal, whole: Path) -> None:
    said = shoal("data", "verify", whole)
    assert (said.code, said.out) == (0, f"{whole}: all 24 images verified\n")
    said = shoal("data", "verify", whole, "--decode")
    assert said.code == 0
    said = shoal("data", "repair", whole)
    assert (said.code, said.out) == (0, f"{whole}: nothing to mend, all is right\n")


def test_damage_is_listed_and_mended(shoal: Shoal, whole: Path, damaged: Path) -> None:
    said = shoal("data", "verify", damaged)
    assert said.code == 2
    first, *found = said.error.splitlines()
    assert f"2 problem(s); `shoal data repair {damaged} --from SRC` mends them" in first
    assert [line.split(":")[0] for line in found] == ["  shard-00001.arrow, block 1, rows 12 to 15", "  labels.arrow"]

    said = shoal("data", "repair", damaged, "--from", "nowhere")
    assert said.code == 2
    assert "does not say how it was imported from 'test'" in said.error

    said = shoal("data", "repair", damaged, "--from", whole)
    assert said.code == 0, said.error
    assert said.out.splitlines() == [
        f"shard-00001.arrow: 1 of its 2 blocks had again from {whole}",
        f"labels.arrow: had again from {whole}",
        f"{damaged}: 2 file(s) mended",
    ]
    assert shoal("data", "verify", damaged).code == 0


def test_what_cannot_be_mended_is_said_once(shoal: Shoal, damaged: Path) -> None:
    said = shoal("data", "repair", damaged)
    assert said.code == 2
    assert "2 file(s) could not be mended" in said.error
    assert said.error.count("shard-00001.arrow, labels.arrow: ") == 1
    assert said.error.count("does not say how it was imported") == 1


def test_no_data_set(shoal: Shoal, tmp_path: Path) -> None:
    for command in ("verify", "repair"):
        said = shoal("data", command, tmp_path / "nowhere")
        assert said.code == 2
        assert "does not exist" in said.error
