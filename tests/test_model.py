import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shoal.checkpoint import Checkpoint
from shoal.data import DataSet
from shoal.errors import CheckpointError, RunError
from shoal.loop import Tick
from shoal.model import Model, load_model
from shoal.objectives import Generates
from shoal.run import Run

MakeRun = Callable[..., Run]
Finish = Callable[..., list[Tick]]
Newest = Callable[[Run], Checkpoint]

CPU = torch.device("cpu")
BATCH_NORM = ["nets.name=conv", "nets.latent=5", "nets.width=2", "nets.norm=batch"]


@pytest.fixture
def run(make_run: MakeRun, finish: Finish) -> Callable[..., Run]:
    def train(kind: str, *overrides: str, data: Path | None = None) -> Run:
        made = make_run(kind, "duration_samples=60", *overrides, data=data)
        finish(made)
        return made

    return train


@pytest.mark.parametrize(("kind", "averaged"), [("autoencoder", {"encoder", "decoder"}), ("gan", {"generator"})])
@pytest.mark.parametrize("conv", [False, True])
def test_a_model_has_the_averaged_weights(
    run: Callable[..., Run], newest: Newest, kind: str, averaged: set[str], conv: bool
) -> None:
    made = run(kind, *(BATCH_NORM if conv else []))
    model = load_model(made.path, CPU)
    saved = newest(made).tensors()
    for name, net in model.objective.nets.items():
        group = "ema" if name in averaged else "nets"
        for key, tensor in net.state_dict().items():
            assert torch.equal(tensor, saved[f"{group}/{name}.{key}"])
        assert any(
            not torch.equal(tensor, saved[f"nets/{name}.{key}"]) for key, tensor in net.state_dict().items()
        ) == (name in averaged)


def test_without_an_average_a_model_has_the_last_weights(run: Callable[..., Run], newest: Newest) -> None:
    made = run("gan", "ema.half_life_samples=0")
    model = load_model(made.path, CPU)
    saved = newest(made).tensors()
    for name, net in model.objective.nets.items():
        for key, tensor in net.state_dict().items():
            assert torch.equal(tensor, saved[f"nets/{name}.{key}"])


def test_a_model_knows_what_it_is(run: Callable[..., Run], colour_data: Path) -> None:
    made = run("autoencoder", data=colour_data)
    model = load_model(made.path, CPU)
    assert model.shape == (3, 32, 32)
    assert model.samples == 60
    assert model.config == made.config
    assert model.device == CPU


@pytest.mark.parametrize("pixel_range", ["unit", "symmetric"])
def test_samples_are_images_between_0_and_1(run: Callable[..., Run], colour_data: Path, pixel_range: str) -> None:
    model = load_model(run("gan", f"data.range={pixel_range}", data=colour_data).path, CPU)
    for num in (1, 7):
        images = model.sample(num)
        assert images.shape == (num, 3, 32, 32)
        assert images.dtype == torch.float32
        assert images.device == CPU
        assert not images.requires_grad
        assert 0 <= images.min() < images.max() <= 1


def test_samples_follow_their_seed(run: Callable[..., Run]) -> None:
    model = load_model(run("gan").path, CPU)
    assert torch.equal(model.sample(4), model.sample(4, seed=0))
    assert not torch.equal(model.sample(4), model.sample(4, seed=1))
    assert len({image.numpy().tobytes() for image in model.sample(16)}) == 16


def test_samples_of_a_reloaded_model_are_the_same(run: Callable[..., Run]) -> None:
    made = run("gan", *BATCH_NORM)
    assert torch.equal(load_model(made.path, CPU).sample(5), load_model(made.path, CPU).sample(5))


@pytest.mark.parametrize("pixel_range", ["unit", "symmetric"])
def test_reconstructions_are_images_between_0_and_1(
    run: Callable[..., Run], small_data: Path, pixel_range: str
) -> None:
    model = load_model(run("autoencoder", f"data.range={pixel_range}").path, CPU)
    pixels = torch.from_numpy(DataSet.open(small_data).rows("test", 0, 9).copy())
    before = pixels.clone()
    images = model.reconstruct(pixels)
    assert images.shape == (9, 1, 28, 28)
    assert images.dtype == torch.float32
    assert not images.requires_grad
    assert 0 <= images.min() < images.max() <= 1
    assert torch.equal(pixels, before)


def test_a_longer_run_reconstructs_better_than_grey(make_run: MakeRun, finish: Finish, small_data: Path) -> None:
    made = make_run("autoencoder", "duration_samples=2000")
    finish(made)
    pixels = torch.from_numpy(DataSet.open(small_data).rows("test", 0, 32).copy())
    x = pixels / 255
    error = (load_model(made.path, CPU).reconstruct(pixels) - x).square().mean()
    assert error < (x.mean() - x).square().mean() / 2


def test_using_a_model_leaves_it_as_it_was(run: Callable[..., Run], small_data: Path) -> None:
    model = load_model(run("autoencoder", *BATCH_NORM).path, CPU)
    pixels = torch.from_numpy(DataSet.open(small_data).rows("test", 0, 8).copy())
    first = model.reconstruct(pixels)
    assert torch.equal(model.reconstruct(pixels), first)
    # With the statistics of a batch, an image's neighbours would show in its reconstruction.
    torch.testing.assert_close(model.reconstruct(pixels[:2]), first[:2])


@pytest.mark.parametrize(
    ("kind", "use", "message"),
    [
        ("autoencoder", lambda model: model.sample(4), r"objective 'autoencoder' generates no images; try `shoal rec"),
        (
            "gan",
            lambda model: model.reconstruct(torch.zeros(1, 1, 28, 28, dtype=torch.uint8)),
            r"objective 'gan' does not reconstruct images; try `shoal sample`",
        ),
    ],
)
def test_what_an_objective_cannot_do_is_refused_with_what_it_can(
    run: Callable[..., Run], kind: str, use: Callable[[Model], object], message: str
) -> None:
    model = load_model(run(kind).path, CPU)
    assert isinstance(model.objective, Generates) == (kind == "gan")
    with pytest.raises(RunError, match=message):
        use(model)


def test_a_run_without_a_checkpoint_has_no_model(make_run: MakeRun) -> None:
    with pytest.raises(RunError, match=r"run-0 has no checkpoint yet; let it train until checkpoint.every_samples"):
        load_model(make_run().path)


def test_a_folder_that_is_no_run_has_no_model(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run directory"):
        load_model(tmp_path)


def test_a_damaged_newest_checkpoint_is_passed_over(run: Callable[..., Run], newest: Newest) -> None:
    made = run("gan", "checkpoint.every_samples=20")
    (newest(made).path / "tensors.safetensors").write_bytes(b"")
    passed_over: list[str] = []
    assert load_model(made.path, CPU, passed_over).samples == 40
    assert len(passed_over) == 1
    assert "000000000060" in passed_over[0]
    for path in made.checkpoints.iterdir():
        shutil.rmtree(path)
        path.mkdir()
    with pytest.raises(CheckpointError, match="verifies"):
        load_model(made.path, CPU)
