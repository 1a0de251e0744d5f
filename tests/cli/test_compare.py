"""``shoal compare``: configurations, measures and pictures of real runs beside each other."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shoal.data import DataSet
from shoal.model import load_model
from shoal.pixels import to_uint8

Shoal = Callable[..., Any]


@pytest.fixture
def other(shoal: Shoal, data: Path, tiny: Sequence[str], tmp_path: Path) -> Path:
    """Return a second run, with another latent and learning rate."""
    words = ("nets.latent=5", "optim.lr=0.01")
    said = shoal("train", "seed-autoencoder", *tiny, *words, "--data", data, "--out", tmp_path / "other", "--local")
    assert said.code == 0, said.error
    return tmp_path / "other"


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image)


def measured(run: Path, **changes: Any) -> None:
    """Write an evaluation, as ``shoal eval`` would."""
    known = {"split": "test", "num_samples": 32, "metrics": {"quality/mse": 0.25}, "samples": 320}
    (run / "eval.json").write_text(json.dumps(known | changes))


def refused(said: Any, *parts: str) -> None:
    assert said.code == 2
    assert said.out == ""
    for part in ("error: ", *parts):
        assert part in said.error


def test_runs_are_compared_in_keys_measures_and_pictures(
    shoal: Shoal, trained: Path, other: Path, data: Path, tmp_path: Path
) -> None:
    for run in (trained, other):
        assert shoal("eval", run).code == 0
    said = shoal("compare", trained, other, "--out", "sheets/both.png", "--json")
    assert said.code == 0, said.error
    assert said.error == ""
    told = json.loads(said.out)
    assert [run["name"] for run in told["runs"]] == ["run", "other"]
    assert told["differences"] == {
        "nets.latent": {"run": 3, "other": 5},
        "optim.lr": {"run": 0.001, "other": 0.01},
    }
    evaluations = {run.name: json.loads((run / "eval.json").read_text()) for run in (trained, other)}
    mse = told["measures"]["quality/mse"]
    for name, evaluation in evaluations.items():
        assert mse["scores"][name]["value"] == evaluation["metrics"]["quality/mse"]
        assert mse["scores"][name]["n"] == 32
    assert mse["better"] == "lower"
    assert mse["best"] == [min(evaluations, key=lambda name: evaluations[name]["metrics"]["quality/mse"])]
    assert told["notes"] == []
    assert told["picture"] == "sheets/both.png"

    sheet = pixels(tmp_path / "sheets" / "both.png")
    assert sheet.shape == (3 * 50, 478)
    originals = torch.from_numpy(DataSet.open(data).rows("test", 0, 16).copy())
    lines = [originals, *(to_uint8(load_model(run).reconstruct(originals), "unit") for run in (trained, other))]
    for line, images in enumerate(lines):
        for column in (0, 15):
            tile = sheet[line * 50 + 20 : line * 50 + 48, column * 30 : column * 30 + 28]
            assert np.array_equal(tile, images[column, 0].numpy())


def test_tables_mark_the_best_and_fill_what_is_absent(shoal: Shoal, trained: Path, other: Path) -> None:
    measured(
        trained,
        metrics={"quality/mse": 0.25, "fd/cnn:1": 12.5},
        details={"fd/cnn:1": {"n": 32, "low": 12, "high": 13, "floor": 1.5}},
    )
    measured(
        other,
        metrics={"quality/mse": 0.125, "quality/active_units": 3, "kd/cnn:1": 2},
        details={"quality/active_units": {"n": 32, "of": 5}, "kd/cnn:1": {"floor": 0.5, "ratio": 4}},
    )
    said = shoal("compare", trained, other)
    assert said.code == 0, said.error
    lines = {line.split("│")[1].strip(): line for line in said.out.splitlines() if line.count("│") > 2}
    cells = {key: [cell.strip() for cell in line.split("│")[2:-1]] for key, line in lines.items()}
    assert cells["nets.latent"] == ["3", "5"]
    assert cells["quality/mse"] == ["lower", "32", "0.25", "0.125 *"]
    assert cells["fd/cnn:1"] == ["lower", "32", "12.5 [12, 13] (floor 1.5)", "-"]
    assert cells["quality/active_units"] == ["", "32", "-", "3 of 5"]
    assert cells["kd/cnn:1"] == ["lower", "32", "-", "2 (4.0 x floor)"]
    assert "after 320 samples" in said.out
    assert said.out.splitlines()[-1] == "compare.png"
    assert pixels(Path("compare.png")).shape == (150, 478)


def test_a_run_without_measures_says_how_to_take_them_and_the_rest_is_compared(
    shoal: Shoal, trained: Path, other: Path
) -> None:
    measured(trained)
    said = shoal("compare", trained, other)
    assert said.code == 0
    assert f"no measures of other; take them: shoal eval {other}" in said.error
    assert "nets.latent" in said.out
    assert "0.25" in said.out
    (trained / "eval.json").unlink()
    said = shoal("compare", trained, other, "--json")
    assert json.loads(said.out)["measures"] == {}
    assert len(json.loads(said.out)["notes"]) == 2


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"num_samples": 16}, ["different numbers of images", "--num 32"]),
        ({"split": "train"}, ["different splits: test and train", "--split test"]),
        ({"fingerprint": "0123456789abcdef"}, ["different data sets", "0123456789ab…", "--data"]),
        (
            {"metrics": {"fd/cnn:2": 1.0}},
            ["different extractors (fd): cnn:1 and cnn:2", "--num 32 --extractor cnn:1"],
        ),
    ],
)
def test_scores_that_do_not_compare_are_refused_before_anything_is_written(
    shoal: Shoal, trained: Path, tmp_path: Path, changes: dict[str, Any], parts: list[str]
) -> None:
    twin = Path(shutil.copytree(trained, tmp_path / "twin"))
    metrics = {"fd/cnn:1": 1.0} if "metrics" in changes else {"quality/mse": 1.0}
    measured(trained, metrics=metrics)
    measured(twin, **({"metrics": metrics} | changes))
    refused(shoal("compare", trained, twin), "`shoal eval ", *parts)
    assert not (tmp_path / "compare.png").exists()


def test_the_same_configuration_is_said_to_be_so(shoal: Shoal, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "twin")
    assert "the configurations are the same" in shoal("compare", trained, tmp_path / "twin").out


def test_what_cannot_be_compared_is_refused(shoal: Shoal, trained: Path, tmp_path: Path) -> None:
    refused(shoal("compare", trained), "give two at least")
    refused(shoal("compare", trained, trained), "more than once")
    refused(shoal("compare", trained, "nowhere"), "nowhere is not a run directory")
    twin = Path(shutil.copytree(trained, tmp_path / "twin"))
    refused(shoal("compare", trained, twin, "--out", "sheet.jpg"), "does not end in .png")
    refused(shoal("compare", trained, twin, "--data", "nowhere"), "nowhere", "shoal data import")
    (twin / "eval.json").write_text("{")
    refused(shoal("compare", trained, twin), "eval.json is damaged", "shoal eval")


def test_runs_of_different_shapes_are_refused(shoal: Shoal, trained: Path, tiny: Sequence[str], tmp_path: Path) -> None:
    from shoal.data.write import write_dataset

    images = np.zeros((64, 3, 8, 8), np.uint8)
    write_dataset(tmp_path / "colour", {"train": [(images, None)]}, shape=(3, 8, 8), class_names=None, source="test")
    words = ("train", "seed-autoencoder", *tiny, "--data", "colour", "--out", "small", "--local")
    assert shoal(*words).code == 0
    refused(shoal("compare", "small", trained), "small makes images of 3x8x8 and run of 1x28x28")


def test_what_is_missing_is_told_and_the_rest_is_compared(
    shoal: Shoal, trained: Path, other: Path, data: Path, tmp_path: Path
) -> None:
    shutil.rmtree(other / "checkpoints")
    said = shoal("compare", trained, other)
    assert "no pictures of other" in said.error
    assert pixels(tmp_path / "compare.png").shape == (100, 478)

    (tmp_path / "compare.png").unlink()
    data.rename(tmp_path / "moved")
    said = shoal("compare", trained, other)
    assert said.code == 0
    assert "no reconstructions: " in said.error
    assert "--data DIR" in said.error
    assert "compare.png" not in said.out
    assert not (tmp_path / "compare.png").exists()
    assert shoal("compare", trained, other, "--data", "moved").out.splitlines()[-1] == "compare.png"
