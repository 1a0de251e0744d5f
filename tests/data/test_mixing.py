"""What is said of data sets that lie sorted by class."""

from pathlib import Path

import numpy as np
import pytest

from shoal.data import DataSet
from shoal.data.mixing import mixing_caution
from shoal.data.write import write_dataset


def make(out: Path, labels: list[int], classes: int = 20) -> DataSet:
    images = np.zeros((len(labels), 1, 4, 4), np.uint8)
    splits = {"train": [(images, np.array(labels))]}
    names = [str(number) for number in range(classes)]
    write_dataset(out, splits, shape=(1, 4, 4), class_names=names, source="test", rows_per_block=10)
    return DataSet.open(out)


def test_sorted_images_are_cautioned_of(tmp_path: Path) -> None:
    data = make(tmp_path / "sorted", [number for number in range(20) for _ in range(20)])  # two blocks a class
    # A class is missed by a window of 4 of 40 blocks with chance (1 - 1/20)^4: 20 (1 - 0.8145) = 3.7 are met.
    said = mixing_caution(data, "train", 4)
    assert said is not None
    assert "data.window_blocks=4 blocks of a window hold about 4 of 20 classes" in said
    assert mixing_caution(data, "train", 20) is None  # 20 (1 - 0.95^20) = 12.8
    assert mixing_caution(data, "train", 40) is None  # all of it


def test_a_part_is_looked_at_alone(tmp_path: Path) -> None:
    labels = [number for number in range(10) for _ in range(20)] + list(np.arange(200) % 20)
    data = make(tmp_path / "half", labels)
    assert mixing_caution(data, "train[:50%]", 2) is not None
    assert mixing_caution(data, "train[50%:]", 2) is None


@pytest.mark.parametrize("window", [1, 4])
def test_shuffled_images_are_not(window: int, tmp_path: Path) -> None:
    data = make(tmp_path / "shuffled", [number % 10 for number in range(400)], 10)
    assert mixing_caution(data, "train", window) is None


def test_images_without_labels_are_not(tmp_path: Path) -> None:
    images = np.zeros((100, 1, 4, 4), np.uint8)
    write_dataset(
        tmp_path / "bare",
        {"train": [(images, None)]},
        shape=(1, 4, 4),
        class_names=None,
        source="test",
        rows_per_block=10,
    )
    assert mixing_caution(DataSet.open(tmp_path / "bare"), "train", 2) is None
