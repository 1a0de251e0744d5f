"""What one rank of a world does for tests/quality/test_workers.py.

Usage: workers.py DATA OUT, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment, as torchrun does.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from shoal.config import build_config
from shoal.data import DataSet
from shoal.errors import ShoalError
from shoal.model import Model
from shoal.objectives import load_plugin
from shoal.quality import images
from shoal.quality.evaluate import evaluate
from shoal.quality.monitor import Monitor
from shoal.quality.store import named_extractor
from shoal.state import build_objective
from shoal.world import World, launched_world

FAMILIES: dict[str, dict[str, Any]] = {
    "vae": {"objective": {"name": "vae"}, "nets": {"name": "mlp", "latent": 4, "hidden": [16]}},
    "painter": {"objective": {"name": "painter"}, "nets": {"name": "mlp"}},
}


def told_by(work: Callable[[], Any]) -> str:
    """Return the error that comes up."""
    try:
        work()
    except ShoalError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def measured(values: dict[str, Any], data: DataSet, damaged: DataSet, world: World) -> dict[str, Any]:
    """Measure an untrained model in every way, and once more on a data set that is damaged.

    The damage is in block 1, which is not the first worker's where there are several.
    """
    config = build_config(values)
    objective = build_objective(config, data.shape, data.num_classes)
    model = Model(objective, config, data.shape, 0, world.device, data.num_classes)
    given: dict[str, Any] = {
        "world": world,
        "extractor": named_extractor("classifier", data),
        "importance_samples": 3,
    }
    monitor = Monitor(objective, config, data, world)
    return {
        "all": asdict(evaluate(model, data, **given)),
        "few": asdict(evaluate(model, data, num=7, **given)),  # a block for the first worker alone
        "monitor": [monitor.measure(), monitor.measure()],
        "evaluate, damaged": told_by(lambda: evaluate(model, damaged, **given)),
        "monitor, damaged": told_by(lambda: Monitor(objective, config, damaged, world).measure()),
    }


def main(arguments: Sequence[str]) -> None:
    data, out = map(Path, arguments)
    torch.set_num_threads(1)
    load_plugin(Path(__file__).with_name("known.py"))
    images.BLOCK_IMAGES = 10  # so that 64 images are seven blocks, of which three workers have 3, 2 and 2
    both = DataSet.open(data), DataSet.open(data.parent / "damaged")
    with launched_world() as world:
        told = {family: measured(values, *both, world) for family, values in FAMILIES.items()}
        (out / f"rank{world.rank}.json").write_text(json.dumps(told))


main(sys.argv[1:])
