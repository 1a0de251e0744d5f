"""Real gloo worlds of one, two and three ranks: same samples, same noise, same gradients, and bit-equal resumes."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from shoal.checkpoint import newest, read
from shoal.data.write import write_dataset
from shoal.run import Run

SCENARIO = Path(__file__).parent / "ranks" / "scenario.py"
WORLDS = (1, 2, 3)


@dataclass(frozen=True)
class Played:
    """What a world left behind: its folder, and the tensors and the error of each rank."""

    folder: Path
    tensors: list[dict[str, Tensor]]
    errors: list[dict[str, str]]


@pytest.fixture(scope="session")
def grey_28(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 images, so that eight batches of 20 cross an epoch."""
    images = np.random.default_rng(0).integers(0, 256, (100, 1, 28, 28), dtype=np.uint8)
    path = tmp_path_factory.mktemp("ddp") / "data"
    write_dataset(
        path, {"train": [(images, None)]}, shape=(1, 28, 28), class_names=None, source="test", rows_per_block=16
    )
    damaged = path.parent / "damaged"
    splits = {"train": [(images[:80], None)], "test": [(images[80:], None)]}
    write_dataset(damaged, splits, shape=(1, 28, 28), class_names=None, source="test", rows_per_block=16)
    shard = bytearray((damaged / "shard-00001.arrow").read_bytes())
    shard[len(shard) // 2] ^= 1
    (damaged / "shard-00001.arrow").write_bytes(shard)
    return path


@pytest.fixture(scope="session")
def play(
    grey_28: Path,
    tmp_path_factory: pytest.TempPathFactory,
    launch_world: Callable[..., list[str]],
) -> Callable[[int], Played]:
    """Run the scenario at a world size, once."""
    known: dict[int, Played] = {}

    def run(size: int) -> Played:
        if size not in known:
            known[size] = launch(size, grey_28, tmp_path_factory.mktemp(f"world{size}"), launch_world)
        return known[size]

    return run


def launch(size: int, data: Path, out: Path, launch_world: Callable[..., list[str]]) -> Played:
    launch_world(size, SCENARIO, data, out)
    return Played(
        out,
        [load_file(out / f"rank{rank}.safetensors") for rank in range(size)],
        [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(size)],
    )


@pytest.mark.parametrize("size", WORLDS[1:])
def test_every_world_sees_the_same_samples_and_noise_in_the_same_positions(
    size: int, play: Callable[[int], Played]
) -> None:
    alone, world = play(1).tensors[0], play(size).tensors
    names = [name for name in alone if name.startswith("positions/")]
    assert len(names) == 8 * 2
    for name in names:
        assert torch.equal(torch.cat([rank[name] for rank in world]), alone[name])


@pytest.mark.parametrize("size", WORLDS[1:])
@pytest.mark.parametrize("phase", ["autoencoder/reconstruction", "gan/discriminator", "gan/generator"])
def test_ddp_gradients_are_those_of_one_process_on_the_joined_batch(
    size: int, phase: str, play: Callable[[int], Played]
) -> None:
    alone, world = play(1).tensors[0], play(size).tensors
    names = [name for name in alone if name.startswith(phase)]
    largest = max(alone[name].abs().max().item() for name in names)
    assert largest > 0.01
    for name in names:
        for rank in world:
            torch.testing.assert_close(rank[name], alone[name], rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize("size", WORLDS)
@pytest.mark.parametrize("objective", ["autoencoder", "gan"])
def test_a_resumed_run_equals_one_that_never_stopped_bit_for_bit(
    size: int, objective: str, play: Callable[[int], Played]
) -> None:
    folder = play(size).folder
    straight, stopped = (Run.open(folder / f"{objective}-{kind}") for kind in ("straight", "stopped"))
    one, other = newest(straight.checkpoints), newest(stopped.checkpoints)
    assert one is not None
    assert other is not None
    assert one.samples == other.samples == 13 * 20
    assert one.stream == other.stream
    assert read(stopped.checkpoints / "000000000100").samples == 100  # where it was stopped
    expected, found = one.tensors(), other.tensors()
    assert expected.keys() == found.keys()
    for group in ("nets/", "ema/", "optim/"):
        assert any(name.startswith(group) for name in expected)
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


@pytest.mark.parametrize("size", WORLDS)
def test_metrics_of_a_resumed_run_have_no_gap_and_no_repetition(
    size: int, play: Callable[[int], Played], measures: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> None:
    folder = play(size).folder
    straight, stopped = (Run.open(folder / f"gan-{kind}").metrics() for kind in ("straight", "stopped"))
    assert [row["samples"] for row in straight] == [60, 80, 120, 160, 180, 240, 260]
    assert [row["samples"] for row in stopped] == [60, 80, 100, 120, 160, 180, 240, 260]
    # After the extra row at the stop, a tick's mean starts there; from the next common one on they are the same.
    for one, other in zip(straight[3:], stopped[4:], strict=True):
        assert measures(one) == measures(other)


@pytest.mark.parametrize("size", WORLDS[1:])
def test_worlds_of_different_sizes_stay_together_for_twenty_steps(size: int, play: Callable[[int], Played]) -> None:
    one, other = (newest(Run.open(play(count).folder / "autoencoder-straight").checkpoints) for count in (1, size))
    assert one is not None
    assert other is not None
    for name, tensor in one.tensors().items():
        if name.startswith("nets/"):
            torch.testing.assert_close(other.tensors()[name], tensor, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("size", WORLDS)
def test_an_error_of_one_rank_is_raised_on_all_with_a_checkpoint(size: int, play: Callable[[int], Played]) -> None:
    played = play(size)
    assert [told["error"] for told in played.errors] == [f"DataError: rank {size - 1} lost its shard"] * size
    saved = newest(played.folder / "failing" / "checkpoints")
    assert saved is not None
    assert saved.samples == 3 * 20


@pytest.mark.parametrize("size", WORLDS)
def test_damage_that_only_the_first_rank_meets_is_told_to_all(size: int, play: Callable[[int], Played]) -> None:
    for told in play(size).errors:
        assert told["damaged pictures"].startswith("DamagedBlockError: ")
        assert "shard-00001.arrow" in told["damaged pictures"]
