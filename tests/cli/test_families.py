"""The families on the command line: what they say before they train, what they refuse, and what they show."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Shoal = Callable[..., Any]

TINY_CONV = (
    "nets.width=4",
    "nets.latent=3",
    "batch=16",
    "duration_samples=64",
    "report.every_samples=32",
    "report.images_every_samples=0",
    "checkpoint.every_samples=0",
    "--local",
)


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture
def conditional(shoal: Shoal, small_data: Path, tmp_path: Path) -> Path:
    """Return a tiny run of a GAN that was told the four classes of the painted images."""
    out = tmp_path / "run"
    said = shoal("train", "cgan", *TINY_CONV, "--data", small_data, "--out", out)
    assert said.code == 0, said.error
    return out


@pytest.mark.parametrize("preset", ["vae", "vq-vae", "wae", "denoising-autoencoder", "wgan-gp", "sngan", "r3gan"])
def test_every_family_trains_measures_and_shows_itself(
    preset: str, shoal: Shoal, small_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    said = shoal("train", preset, *TINY_CONV, "report.quality_every_samples=64", "--data", small_data, "--out", out)
    assert said.code == 0, said.error
    row = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert any(name.startswith(("quality/", "fd/")) for name in row)
    said = shoal("eval", out, "--json", "--importance-samples", "2")
    assert said.code == 0, said.error
    measured = json.loads(said.out)
    assert measured["num_samples"] == 32
    made = "quality/mse" if preset.endswith(("ae", "autoencoder")) else "fd/random"
    assert any(name.startswith(made) for name in measured["metrics"])
    assert shoal("reconstruct" if made == "quality/mse" else "sample", out, "--num", "8").code == 0


def test_a_conditional_gan_shows_a_column_for_each_class(shoal: Shoal, conditional: Path) -> None:
    assert shoal("sample", conditional, "--num", "8").code == 0
    assert pixels(conditional / "samples.png").shape == (2 * 28 + 2, 4 * 28 + 3 * 2)


def test_one_class_may_be_asked_for_by_name_or_number(shoal: Shoal, conditional: Path, tmp_path: Path) -> None:
    for label, file in (("south-west", "name.png"), ("2", "number.png"), ("0", "other.png")):
        assert shoal("sample", conditional, "--num", "4", "--label", label, "--out", tmp_path / file).code == 0
    name, number, other = (pixels(tmp_path / f"{kind}.png") for kind in ("name", "number", "other"))
    assert name.shape == (2 * 28 + 2, 2 * 28 + 2)
    assert np.array_equal(name, number)
    assert not np.array_equal(name, other)


def test_an_unknown_class_is_refused_with_the_nearest(shoal: Shoal, conditional: Path) -> None:
    said = shoal("sample", conditional, "--label", "south-wets")
    assert said.code == 2
    assert "--label south-wets is no class" in said.error
    assert "did you mean 'south-west'?" in said.error
    assert shoal("sample", conditional, "--label", "4").code == 2


def test_a_model_without_classes_is_asked_for_none(shoal: Shoal, small_data: Path, tmp_path: Path) -> None:
    words = ("train", "r3gan", *TINY_CONV, "--data", small_data, "--out", tmp_path / "run")
    assert shoal(*words).code == 0
    said = shoal("sample", tmp_path / "run", "--label", "0")
    assert said.code == 2
    assert "was not told any classes" in said.error


def test_labels_that_are_not_there_are_refused(shoal: Shoal, data: Path, tmp_path: Path) -> None:
    said = shoal("train", "cgan", *TINY_CONV, "--data", data, "--out", tmp_path / "run")
    assert said.code == 2
    assert "objective.conditional=true needs the class of every image" in said.error
    assert "has no labels" in said.error
    assert not (tmp_path / "run").exists()


def test_a_codebook_that_a_batch_cannot_fill_is_cautioned_about(shoal: Shoal, small_data: Path, tmp_path: Path) -> None:
    words = ("train", "vq-vae", *TINY_CONV, "--data", small_data, "--out", tmp_path / "run")
    said = shoal(*words, "objective.num_codes=1000")
    assert said.code == 0
    assert "caution: objective.num_codes=1000 is more than the 16 x 7 x 7 = 784 codes" in said.out
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"codes/usage", "codes/perplexity"} <= row.keys()


def test_more_images_to_measure_than_there_are_are_refused(
    shoal: Shoal, data: Path, tiny: Sequence[str], tmp_path: Path
) -> None:
    words = ("train", "seed-autoencoder", *tiny, "--local", "--data", data, "--out", tmp_path / "run")
    said = shoal(*words, "report.quality_every_samples=160", "report.quality_images=33")
    assert said.code == 2
    assert "report.quality_images=33 is more than the 32 images of split 'test'" in said.error
    assert not (tmp_path / "run").exists()
    assert shoal(*words, "report.quality_every_samples=160", "report.quality_images=32").code == 0
