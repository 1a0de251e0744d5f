"""Every family on real gloo worlds: equal weights on all ranks, the gradients of one process, bit-equal resumes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from shoal.run import Run

SCENARIO = Path(__file__).parent / "ranks" / "families.py"
FAMILIES = list(yaml.safe_load(SCENARIO.with_suffix(".yaml").read_text()))
WORLDS = (1, 2, 3)
BATCH, BATCHES = 20, 20

Played = tuple[Path, list[dict[str, Tensor]]]


@pytest.fixture(scope="session")
def play(
    small_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
    launch_world: Callable[..., list[str]],
) -> Callable[[int], Played]:
    """Train every family at a world size, once; return the runs' folder and each rank's tensors."""
    known: dict[int, Played] = {}

    def run(size: int) -> Played:
        if size not in known:
            out = tmp_path_factory.mktemp(f"families{size}")
            launch_world(size, SCENARIO, small_data, out)
            known[size] = out, [load_file(out / f"rank{rank}.safetensors") for rank in range(size)]
        return known[size]

    return run


def of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    assert found, prefix
    return found


@pytest.mark.parametrize("size", WORLDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_ticks_leave_equal_weights_on_every_rank(family: str, size: int, play: Callable[[int], Played]) -> None:
    folder, ranks = play(size)
    rows = Run.open(folder / f"{family}-straight").metrics()
    assert [row["samples"] for row in rows] == [BATCH * (tick + 1) for tick in range(BATCHES)]
    first = of(ranks[0], f"{family}/straight/")
    assert any(name.startswith("ema/") for name in first)
    for rank in ranks[1:]:
        own = of(rank, f"{family}/straight/")
        assert [name for name, tensor in first.items() if not tensor.equal(own[name])] == []


@pytest.mark.parametrize("size", WORLDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_run_equals_one_that_never_stopped_bit_for_bit(
    family: str, size: int, play: Callable[[int], Played]
) -> None:
    _, ranks = play(size)
    for rank in ranks:
        straight, stopped = (of(rank, f"{family}/{kind}/") for kind in ("straight", "stopped"))
        assert straight.keys() == stopped.keys()
        assert [name for name, tensor in straight.items() if not tensor.equal(stopped[name])] == []


@pytest.mark.parametrize("size", WORLDS[1:])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_one_process_on_the_joined_batch(
    family: str, size: int, play: Callable[[int], Played]
) -> None:
    alone, world = of(play(1)[1][0], f"{family}/gradient/"), play(size)[1]
    for phase in {name.partition("/")[0] for name in alone}:
        largest = max(float(tensor.abs().max()) for name, tensor in alone.items() if name.startswith(phase))
        assert largest > 1e-3
        for rank in world:
            found = of(rank, f"{family}/gradient/{phase}/")
            for name, tensor in of(alone, f"{phase}/").items():
                torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5 * largest, msg=f"{phase}/{name}")


@pytest.mark.parametrize("size", WORLDS[1:])
@pytest.mark.parametrize("family", ["vq-vae", "gan-hinge-spectral-norm"])
def test_buffers_after_a_step_are_those_of_one_process(family: str, size: int, play: Callable[[int], Played]) -> None:
    alone = of(play(1)[1][0], f"{family}/buffer/")
    for rank in play(size)[1]:
        found = of(rank, f"{family}/buffer/")
        for name, tensor in alone.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
