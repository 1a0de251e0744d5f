from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from shoal.config import RunConfig
from shoal.engine import Engine
from shoal.errors import CheckpointError
from shoal.noise import Noise
from shoal.objectives import Batch
from shoal.state import EMA_RAMP, State, build_objective
from shoal.world import World

Tiny = Callable[..., RunConfig]
SHAPE = (1, 28, 28)


def fresh(config: RunConfig) -> tuple[State, Engine]:
    objective = build_objective(config, SHAPE)
    state = State.fresh(objective, config)
    return state, Engine(objective, state, config, World.local("cpu"))


def step(state: State, engine: Engine, config: RunConfig) -> None:
    noise = Noise(config.seed, state.batches, config.batch, slice(0, config.batch))
    images = torch.rand(config.batch, *SHAPE, generator=torch.Generator().manual_seed(state.batches))
    engine.step(Batch(images=images, labels=None), noise)


def trained(config: RunConfig, steps: int) -> State:
    state, engine = fresh(config)
    for _ in range(steps):
        step(state, engine, config)
    return state


def copies(state: State) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.tensors().items()}


@pytest.mark.parametrize(
    ("kind", "groups"),
    [
        ("autoencoder", {"nets/encoder", "nets/decoder", "ema/encoder", "ema/decoder", "optim/reconstruction"}),
        ("gan", {"nets/generator", "nets/discriminator", "ema/generator", "optim/generator", "optim/discriminator"}),
    ],
)
def test_everything_to_resume_is_listed_by_name(tiny: Tiny, kind: str, groups: set[str]) -> None:
    state = trained(tiny(kind), 1)
    names = state.tensors().keys()
    assert {"/".join(name.split("/")[:2]).split(".")[0] for name in names} == groups
    weights = {name.removeprefix("nets/") for name in names if name.startswith("nets/")}
    moments = {tuple(name.split("/")[2:]) for name in names if name.startswith("optim/")}
    assert moments == {(weight, moment) for weight in weights for moment in ("step", "exp_avg", "exp_avg_sq")}


def test_without_an_average_there_is_none_in_the_list(tiny: Tiny) -> None:
    state = trained(tiny("gan", "ema.half_life_samples=0"), 2)
    assert not state.ema
    assert not any(name.startswith("ema/") for name in state.tensors())


def test_the_average_starts_as_a_copy(tiny: Tiny) -> None:
    state, _ = fresh(tiny("gan"))
    for name, average in state.ema.items():
        for old, new in zip(average.parameters(), state.nets[name].parameters(), strict=True):
            assert torch.equal(old, new)
            assert old.data_ptr() != new.data_ptr()
            assert not old.requires_grad
            assert new.requires_grad


@pytest.mark.parametrize("samples", [10, 200, 1_999, 2_000, 2_001, 100_000])
def test_the_average_moves_by_what_a_batch_is_worth(tiny: Tiny, samples: int) -> None:
    # keep = 0.5^(batch / half-life); while the run is young, the half-life is a share of the samples seen.
    state, _ = fresh(tiny("autoencoder"))
    state.samples = samples
    generator = torch.Generator().manual_seed(samples)
    with torch.no_grad():
        for net in state.nets.values():
            for weight in net.parameters():
                weight.add_(torch.randn(weight.shape, generator=generator))
    before = copies(state)
    state.update_ema(batch=30, half_life_samples=100)
    half_life = 100 if samples >= 2_000 else samples * EMA_RAMP
    keep = 0.5 ** (30 / half_life)
    for name, tensor in state.tensors().items():
        if name.startswith("ema/"):
            old, new = before[name], before[name.replace("ema/", "nets/", 1)]
            assert not torch.equal(old, new)
            torch.testing.assert_close(tensor, old * keep + new * (1 - keep))
        else:
            assert torch.equal(tensor, before[name])


def test_after_a_half_life_half_of_the_old_is_left(tiny: Tiny) -> None:
    state, _ = fresh(tiny("autoencoder"))
    state.samples = 10**6
    with torch.no_grad():
        for name, net in state.nets.items():
            for old, new in zip(state.ema[name].parameters(), net.parameters(), strict=True):
                old.fill_(1)
                new.fill_(0)
    for _ in range(10):
        state.update_ema(batch=10, half_life_samples=100)
    for net in state.ema.values():
        for weight in net.parameters():
            torch.testing.assert_close(weight.detach(), torch.full_like(weight, 0.5))


def test_the_average_takes_running_statistics_as_they_are(tiny: Tiny) -> None:
    config = tiny("gan", "nets.name=conv", "nets.width=2", "nets.norm=batch", "batch=2")
    state = trained(config, 2)
    found = 0
    for old, new in zip(state.ema["generator"].buffers(), state.nets["generator"].buffers(), strict=True):
        assert torch.equal(old, new)
        found += 1
    assert found


@pytest.mark.parametrize("kind", ["autoencoder", "gan"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("steps", [0, 3])
def test_what_was_listed_loads_and_goes_on_the_same(
    tiny: Tiny, differing: Callable[..., list[str]], kind: str, optimizer: str, steps: int
) -> None:
    config = tiny(kind, f"optim.name={optimizer}", "optim.weight_decay=0.01")
    original, engine = fresh(config)
    for _ in range(steps):
        step(original, engine, config)
    other_seed = tiny(kind, f"optim.name={optimizer}", "optim.weight_decay=0.01", "seed=9")
    again, engine_again = fresh(other_seed)
    for _ in range(2):
        step(again, engine_again, config)
    assert differing(again.tensors(), original.tensors())
    again.load_tensors(copies(original))
    again.samples, again.batches = original.samples, original.batches
    assert differing(again.tensors(), original.tensors()) == []
    for _ in range(2):
        step(original, engine, config)
        step(again, engine_again, config)
    assert differing(again.tensors(), original.tensors()) == []


def test_loading_takes_copies(tiny: Tiny, differing: Callable[..., list[str]]) -> None:
    config = tiny("gan")
    saved = copies(trained(config, 2))
    state, _ = fresh(config)
    state.load_tensors(saved)
    before = copies(state)
    for tensor in saved.values():
        tensor.fill_(7)
    assert differing(state.tensors(), before) == []


def test_another_shape_is_refused_with_both(tiny: Tiny) -> None:
    saved = copies(trained(tiny("autoencoder"), 1))
    state, _ = fresh(tiny("autoencoder", "nets.latent=6"))
    with pytest.raises(CheckpointError, match=r"tensor nets/.* is \[.*\] in the checkpoint and \[.*\] here"):
        state.load_tensors(saved)


@pytest.mark.parametrize("name", ["nets/encoder.1.weight", "ema/decoder.0.bias"])
def test_a_missing_tensor_is_named(tiny: Tiny, name: str) -> None:
    config = tiny("autoencoder")
    saved = copies(trained(config, 1))
    del saved[name]
    state, _ = fresh(config)
    with pytest.raises(CheckpointError, match=f"tensor {name} is missing from the checkpoint"):
        state.load_tensors(saved)


def test_a_superfluous_tensor_is_named(tiny: Tiny) -> None:
    config = tiny("autoencoder")
    saved = {**copies(trained(config, 1)), "nets/critic.0.weight": torch.ones(1)}
    state, _ = fresh(config)
    with pytest.raises(CheckpointError, match=r"tensor nets/critic.0.weight is only in the checkpoint"):
        state.load_tensors(saved)
