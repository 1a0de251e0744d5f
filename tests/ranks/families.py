"""What one rank of a world does for tests/test_families.py: every family, one after the other.

Usage: families.py DATA OUT, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment, as torchrun does.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from shoal.config import RunConfig, build_config, merge
from shoal.data import DataSet, Stream
from shoal.engine import Engine
from shoal.execute import execute
from shoal.noise import Noise
from shoal.objectives import Batch
from shoal.pixels import to_float
from shoal.run import Run
from shoal.state import State, build_objective
from shoal.world import World, launched_world

BATCH = 20  # over three ranks: 6, 7 and 7
BATCHES = 20
STOPPED_AFTER = 7  # not when a lazy penalty or a generator's turn is due
FAMILIES: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("families.yaml").read_text())
COMMON: dict[str, Any] = {
    "nets": {"name": "conv", "latent": 5, "width": 4},
    "batch": BATCH,
    "duration_samples": BATCHES * BATCH,
    "data": {"range": "symmetric", "window_blocks": 2},
    "optim": {"lr": 1e-3},
    "ema": {"half_life_samples": 100},
    "report": {"every_samples": BATCH, "images_every_samples": 0},
    "checkpoint": {"every_samples": 0},
}


def config(family: Mapping[str, Any]) -> RunConfig:
    return build_config(merge(COMMON, family))


def gradients(settings: RunConfig, world: World, data: Path) -> dict[str, Tensor]:
    """Return the gradients that the optimizers are given in the first step, and the buffers after it."""
    dataset = DataSet.open(data)
    objective = build_objective(settings, dataset.shape, dataset.num_classes)
    # So that no phase changes what the next one sees.
    state = State.fresh(
        objective, settings.model_copy(update={"optim": settings.optim.model_copy(update={"lr": 1e-12})})
    )
    found: dict[str, Tensor] = {}

    def note(phase: str) -> Any:
        def hook(optimizer: torch.optim.Optimizer, arguments: Any, keywords: Any) -> None:
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            found.update({f"gradient/{phase}/{i:03}": weight.grad.clone() for i, weight in enumerate(weights)})

        return hook

    for phase, optimizer in state.optimizers.items():
        optimizer.register_step_pre_hook(note(phase))
    rows = world.slice(BATCH)
    with Stream(dataset, split="train", batch=BATCH, seed=0, rows=rows) as stream:
        raw = next(stream)
        batch = Batch(
            images=to_float(raw.images, settings.data.range),
            labels=raw.labels,
            rows=rows,
            size=BATCH,
            sum=world.sum,
        )
        Engine(objective, state, settings, world).step(batch, Noise(0, 0, BATCH, rows))
    buffers = {
        f"buffer/{name}.{key}": tensor.clone()
        for name, net in objective.nets.items()
        for key, tensor in net.named_buffers()
    }
    return found | buffers


def trained(run: Run, world: World, *, stop_after: int | None = None) -> dict[str, Tensor]:
    """Train a run from where it stands; return this rank's networks and averages at the end."""
    states: list[State] = []
    fresh = State.fresh
    State.fresh = classmethod(lambda cls, *given: states.append(fresh(*given)) or states[-1])  # type: ignore[method-assign,assignment,func-returns-value]  # to look at this rank's own tensors
    try:
        asked = iter(range(1, 1000))
        execute(run, world, should_stop=lambda: next(asked) == stop_after)
    finally:
        State.fresh = fresh  # type: ignore[method-assign]  # see above
    named = states[-1].tensors()
    return {name: tensor.clone() for name, tensor in named.items() if not name.startswith("optim/")}


def main(data: Path, out: Path) -> None:
    torch.set_num_threads(1)
    with launched_world() as world:
        tensors: dict[str, Tensor] = {}
        for name, family in FAMILIES.items():
            settings = config(family)
            tensors |= {f"{name}/{key}": value for key, value in gradients(settings, world, data).items()}
            for kind in ("straight", "stopped"):
                path = out / f"{name}-{kind}"
                world.first_says(lambda path=path, settings=settings: Run.create(path, settings, data) and None)  # type: ignore[misc]  # mypy cannot infer a lambda with defaults
                run = Run.open(path)
                if kind == "stopped":
                    trained(run, world, stop_after=STOPPED_AFTER)
                tensors |= {f"{name}/{kind}/{key}": value for key, value in trained(run, world).items()}
        world.barrier()
        save_file({key: value.contiguous() for key, value in tensors.items()}, out / f"rank{world.rank}.safetensors")


main(*map(Path, sys.argv[1:]))
