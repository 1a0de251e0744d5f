from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shoal.config import build_config, merge, with_overrides
from shoal.data import DataSet
from shoal.data.write import write_dataset
from shoal.model import Model
from shoal.objectives import load_plugin
from shoal.quality.classifier import train_extractor
from shoal.quality.extractor import Extractor
from shoal.state import build_objective

FAMILIES: dict[str, dict[str, Any]] = {
    "autoencoder": {"objective": {"name": "autoencoder"}, "nets": {"name": "mlp", "hidden": [16]}},
    "vae": {"objective": {"name": "vae"}, "nets": {"name": "mlp", "hidden": [16]}},
    "vq_vae": {"objective": {"name": "vq_vae", "num_codes": 32}, "nets": {"name": "conv", "width": 4}},
    "gan": {"objective": {"name": "gan"}, "nets": {"name": "mlp", "hidden": [16]}},
    "cgan": {"objective": {"name": "gan", "conditional": True}, "nets": {"name": "conv", "width": 4}},
    "painter": {"objective": {"name": "painter"}, "nets": {"name": "mlp"}},
    "copy": {"objective": {"name": "copy"}, "nets": {"name": "mlp"}},
}
KNOWN = Path(__file__).with_name("known.py")


def corners(labels: NDArray[np.integer], size: int, seed: int) -> NDArray[np.uint8]:
    """Return grey images that are noise with one bright quadrant: the one that the label says."""
    images = np.random.default_rng(seed).integers(0, 60, (len(labels), 1, size, size))
    half = size // 2
    for image, label in zip(images, labels, strict=True):
        top, left = label // 2 * half, label % 2 * half
        image[:, top : top + half, left : left + half] += 180
    return images.astype(np.uint8)


@pytest.fixture(scope="session")
def paint() -> Callable[..., NDArray[np.uint8]]:
    return corners


@pytest.fixture(scope="session")
def corner_data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """96 + 64 grey images of 12x12, sorted by class as imported folders are: few pixels, so that training is quick."""
    out = tmp_path_factory.mktemp("quality") / "corners"
    write_dataset(
        out,
        {
            name: [(corners(np.sort(np.arange(num) % 4), 12, seed), np.sort(np.arange(num) % 4))]
            for name, num, seed in (("train", 96, 0), ("test", 64, 1))
        },
        shape=(1, 12, 12),
        class_names=["north-west", "north-east", "south-west", "south-east"],
        source="painted",
        rows_per_block=16,
    )
    return DataSet.open(out)


@pytest.fixture(scope="session")
def classifier(corner_data: DataSet) -> Extractor:
    return train_extractor(corner_data)


@pytest.fixture(scope="session")
def grey(small_data: Path) -> DataSet:
    """96 + 32 grey images of 28x28 in four classes."""
    return DataSet.open(small_data)


@pytest.fixture(scope="session")
def untrained() -> Callable[..., Model]:
    """Return ``untrained(family, data, *overrides)``: a model with the weights that its seed gives it."""

    def build(family: str, data: DataSet, *overrides: str, num_classes: int | None = None) -> Model:
        load_plugin(KNOWN)
        values = merge({"data": {"range": "unit"}, "batch": 20}, FAMILIES[family])
        config = with_overrides(build_config(values), ["nets.latent=4", *overrides])
        num_classes = data.num_classes if num_classes is None else num_classes
        objective = build_objective(config, data.shape, num_classes)
        return Model(objective, config, data.shape, 0, torch.device("cpu"), num_classes)

    return build
