from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shoal.data import DataSet
from shoal.data.write import write_dataset

SHAPE = (3, 4, 5)


@pytest.fixture(scope="session")
def images() -> NDArray[np.uint8]:
    """200 images: 150 of train, then 50 of test."""
    return np.random.default_rng(0).integers(0, 256, (200, *SHAPE), dtype=np.uint8)


@pytest.fixture(scope="session")
def labels() -> NDArray[np.int64]:
    return np.random.default_rng(1).integers(-1, 4, 200)


@pytest.fixture
def make(tmp_path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Callable[[str], Path]:
    """Write the images as blocks of 16 in shards of 4 blocks, under a name."""

    def write(name: str) -> Path:
        splits = {
            "train": [(images[:70], labels[:70]), (images[70:150], labels[70:150])],
            "test": [(images[150:], labels[150:])],
        }
        write_dataset(
            tmp_path / name,
            splits,
            shape=SHAPE,
            class_names=["ant", "bee", "cat", "dog"],
            source="test",
            rows_per_block=16,
            shard_bytes=4 * 16 * 60,
        )
        return tmp_path / name

    return write


@pytest.fixture
def path(make: Callable[[str], Path]) -> Path:
    return make("set")


@pytest.fixture
def dataset(path: Path) -> DataSet:
    return DataSet.open(path)


@pytest.fixture
def damage() -> Callable[[Path, int], None]:
    """Flip one bit of the byte at an offset of a file."""

    def flip(file: Path, offset: int) -> None:
        data = bytearray(file.read_bytes())
        data[offset] ^= 1
        file.write_bytes(data)

    return flip
