from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shoal.data import DataSet
from shoal.errors import DataError, RunError
from shoal.loop import Tick
from shoal.model import Model, load_model
from shoal.quality import reconstruction
from shoal.quality.reconstruction import evaluate
from shoal.run import Run

CPU = torch.device("cpu")


@pytest.fixture
def model(make_run: Callable[..., Run], finish: Callable[..., list[Tick]]) -> Model:
    run = make_run("autoencoder", "data.range=symmetric", "duration_samples=200")
    finish(run)
    return load_model(run.path, CPU)


def by_hand(model: Model, images: NDArray[np.uint8]) -> dict[str, float]:
    """Return the two measures as their definitions say, in float64."""
    x = images.astype(np.float64) / 255
    y = model.reconstruct(torch.from_numpy(images.copy())).numpy().astype(np.float64)
    mse = ((x - y) ** 2).mean(axis=(1, 2, 3))
    return {"quality/mse": float(mse.mean()), "quality/psnr": float((10 * np.log10(1 / mse)).mean())}


@pytest.mark.parametrize(("split", "num"), [("test", 32), ("train", 96)])
def test_measures_are_what_their_definitions_say(model: Model, small_data: Path, split: str, num: int) -> None:
    data = DataSet.open(small_data)
    found = evaluate(model, data, split)
    assert (found.split, found.num_samples) == (split, num)
    assert found.metrics == pytest.approx(by_hand(model, data.rows(split, 0, num)), rel=1e-6)


@pytest.mark.parametrize("batch", [1, 5, 31, 32, 33])
def test_measures_do_not_depend_on_how_the_split_is_cut(
    model: Model, small_data: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataSet.open(small_data)
    expected = by_hand(model, data.rows("test", 0, 32))
    monkeypatch.setattr(reconstruction, "BATCH", batch)
    done: list[int] = []
    found = evaluate(model, data, "test", done.append)
    assert found.metrics == pytest.approx(expected, rel=1e-6)
    assert sum(done) == 32
    assert max(done) == min(batch, 32)


def test_the_mean_of_psnr_is_over_images(small_data: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    # One image off by 0.1 everywhere, one by 0.01: 20 dB and 40 dB. Over all pixels together it would be 23 dB.
    images = DataSet.open(small_data).rows("test", 0, 2) / 255
    off = torch.from_numpy(images + np.array([0.1, 0.01])[:, None, None, None])
    monkeypatch.setattr(Model, "reconstruct", lambda self, pixels: off)
    monkeypatch.setattr(DataSet, "num_rows", lambda self, split: 2)
    found = evaluate(model, DataSet.open(small_data)).metrics
    assert found["quality/psnr"] == pytest.approx(30)
    assert found["quality/mse"] == pytest.approx((0.01 + 0.0001) / 2)


def test_a_split_that_is_not_there_is_refused(model: Model, small_data: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'tets' \(did you mean 'test'\?\)"):
        evaluate(model, DataSet.open(small_data), "tets")


def test_a_gan_has_no_reconstructions_to_measure(
    make_run: Callable[..., Run], finish: Callable[..., list[Tick]], small_data: Path
) -> None:
    run = make_run("gan", "duration_samples=20")
    finish(run)
    with pytest.raises(RunError, match="objective 'gan' does not reconstruct images"):
        evaluate(load_model(run.path, CPU), DataSet.open(small_data))
