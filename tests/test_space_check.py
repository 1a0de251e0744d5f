"""The arithmetic of a run's checkpoints, against what they weigh."""

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.checkpoint import TENSORS, Checkpoint, saved
from shoal.config import RunConfig, presets, read_config
from shoal.data import DataSet
from shoal.errors import StorageError
from shoal.loop import Tick
from shoal.run import Run
from shoal.space_check import checkpoint_bytes, refuse_little_space

MakeRun = Callable[..., Run]
Finish = Callable[..., list[Tick]]
Newest = Callable[[Run], Checkpoint]
Tiny = Callable[..., RunConfig]

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("autoencoder", []),
        ("gan", []),
        ("gan", ["ema.half_life_samples=0", "nets.name=conv", "nets.width=4", "nets.norm=batch"]),
        ("autoencoder", ["optim.name=sgd"]),
        ("autoencoder", ["optim.name=adamw", "objective.name=vae"]),
        ("autoencoder", ["changes={40: {nets.latent: 9}}"]),
    ],
)
def test_a_checkpoint_weighs_what_was_said(
    make_run: MakeRun, finish: Finish, newest: Newest, kind: str, overrides: list[str]
) -> None:
    run = make_run(kind, "duration_samples=60", *overrides)
    finish(run)
    tensors = newest(run).tensors()
    assert checkpoint_bytes(run.config, DataSet.open(run.data)) == sum(
        tensor.numel() * tensor.element_size() for tensor in tensors.values()
    )


@pytest.mark.parametrize("preset", sorted(presets()))
def test_every_preset_can_be_weighed(preset: str, small_data: Path, colour_data: Path) -> None:
    config = read_config(preset)
    data = DataSet.open(colour_data if "64" in preset else small_data)
    assert 10_000 < checkpoint_bytes(config, data) < 10**9


def free(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, num_bytes))


@pytest.mark.parametrize(
    ("overrides", "num"),
    [
        (["checkpoint.keep=2"], 2 + 2),
        (["checkpoint.keep=9"], 3 + 2),  # as many as there will be: at 80, 160 and 200
        (["checkpoint.every_samples=0"], 1 + 2),
        (["checkpoint.keep=1", "checkpoint.keep_best=quality/mse", "report.quality_every_samples=40"], 2 + 2),
    ],
)
def test_a_run_that_does_not_fit_is_refused_with_the_arithmetic(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, overrides: list[str], num: int
) -> None:
    run = make_run("autoencoder", *overrides)
    data = DataSet.open(run.data)
    each = checkpoint_bytes(run.config, data)
    path = tmp_path / "not" / "there" / "yet"
    free(monkeypatch, num * each)
    refuse_little_space(path, run.config, data)
    free(monkeypatch, num * each - 1)
    with pytest.raises(
        StorageError, match=rf"{tmp_path} has .* free, and the run needs .*: {num} checkpoints of .*KiB"
    ):
        refuse_little_space(path, run.config, data)
    assert not path.parent.exists()


def test_what_a_resumed_run_has_already_is_not_asked_for_again(
    make_run: MakeRun, finish: Finish, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("autoencoder")
    finish(run)
    data = DataSet.open(run.data)
    taken = sum((path / TENSORS).stat().st_size for path in saved(run.checkpoints))
    needed = 5 * checkpoint_bytes(run.config, data) - taken
    free(monkeypatch, needed)
    refuse_little_space(run.path, run.config, data)
    free(monkeypatch, needed - 1)
    with pytest.raises(StorageError, match=r"less .*iB that it has"):
        refuse_little_space(run.path, run.config, data)
