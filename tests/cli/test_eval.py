import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.data.write import write_dataset

Shoal = Callable[..., Any]


def refused(said: Any, *words: str) -> None:
    assert said.code == 2, said.out
    for word in words:
        assert word in said.error


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """64 + 32 images of 12x12, brighter the higher their class."""
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 3
    images = (rng.integers(0, 80, (96, 1, 12, 12)) + 80 * labels[:, None, None, None]).astype(np.uint8)
    out = tmp_path / "labelled"
    splits = {"train": [(images[:64], labels[:64])], "test": [(images[64:], labels[64:])]}
    write_dataset(out, splits, shape=(1, 12, 12), class_names=["dark", "[b]grey", "light"], source="test")
    return out


@pytest.fixture
def gan(shoal: Shoal, labelled: Path, tiny: Sequence[str], tmp_path: Path) -> Path:
    """A finished GAN, which has seen little."""
    said = shoal("train", "seed-gan", *tiny, "--data", labelled, "--out", tmp_path / "gan", "--local")
    assert said.code == 0, said.error
    return tmp_path / "gan"


def test_what_takes_long_to_import_is_not_imported_for_help() -> None:
    code = (
        "import sys, shoal_ray.cli\n"
        "assert 'shoal.quality.evaluate' in sys.modules\n"
        "assert not {'torchmetrics', 'torch_fidelity', 'ray'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_autoencoder_is_measured_on_all_images(shoal: Shoal, trained: Path) -> None:
    said = shoal("eval", trained, "--json")
    assert said.code == 0
    told = json.loads(said.out)
    assert told == json.loads((trained / "eval.json").read_text())
    assert (told["split"], told["num_samples"], told["samples"]) == ("test", 32, 320)
    assert list(told["metrics"]) == ["quality/mse", "quality/psnr", "quality/ssim"]
    assert (
        told["details"]["quality/mse"]["low"] < told["metrics"]["quality/mse"] < told["details"]["quality/mse"]["high"]
    )
    assert (told["extractor"], told["per_class"]) == (None, {})
    few = json.loads(shoal("eval", trained, "--split", "train", "--num", "5", "--json").out)
    assert (few["split"], few["num_samples"], few["details"]["quality/mse"]["n"]) == ("train", 5, 5)


def test_the_table_says_how_sure_it_is(shoal: Shoal, trained: Path) -> None:
    said = shoal("eval", trained)
    assert said.code == 0
    assert "run after 320 samples, on 32 of test" in said.out
    for word in ("measure", "value", "95 % interval", "floor", "n"):
        assert word in said.out
    assert re.search(r"quality/psnr\D+[\d.]+\D+[\d.]+ to [\d.]+", said.out)
    assert said.error == ""


def test_a_gan_is_measured_by_the_best_extractor_there_is(shoal: Shoal, gan: Path, labelled: Path) -> None:
    said = shoal("eval", gan, "--json")
    assert said.code == 0
    assert "no extractor was made for" in said.error
    assert f"shoal extractor train --data {labelled}" in said.error
    assert json.loads(said.out)["extractor"]["kind"] == "random"

    made = shoal("extractor", "train", "--data", labelled)
    assert made.code == 0
    name = re.search(r"classifier:[0-9a-f]{8}", made.out)
    assert name is not None
    said = shoal("eval", gan, "--json")
    assert said.error == ""
    told = json.loads(said.out)
    assert told["extractor"]["id"] == name[0]
    families = ["fd", "kd", "is", "precision", "recall", "density", "coverage"]
    assert list(told["metrics"]) == [f"{family}/{name[0]}" for family in families]
    assert told["details"][f"fd/{name[0]}"]["ratio"] > 1
    assert set(told["per_class"]) == {"dark", "[b]grey", "light"}
    shown = shoal("eval", gan).out
    assert f"extractor {name[0]}, test accuracy" in shown
    assert "[b]grey" in shown
    assert re.search(r"fd/classifier:\w+\D+[\d.e+]+\D+[\d.e+]+ to [\d.e+]+\D+[\d.e+-]+ \(x [\d.]+\)\D+32", shown)
    untrained = json.loads(shoal("eval", gan, "--extractor", "random", "--json").out)
    assert untrained["extractor"]["kind"] == "random"


def test_extractors_are_made_and_listed(shoal: Shoal, labelled: Path, data: Path) -> None:
    assert "none yet" in shoal("extractor", "list", "--data", labelled).out
    for kind in ("random", "rotation", "classifier"):
        assert shoal("extractor", "train", "--data", labelled, "--kind", kind).code == 0
    said = shoal("extractor", "list", "--data", labelled)
    assert re.findall("classifier:|rotation:|random:", said.out) == ["classifier:", "rotation:", "random:"]
    listed = json.loads(shoal("extractor", "list", "--data", labelled, "--json").out)
    assert [facts["kind"] for facts in listed] == ["classifier", "rotation", "random"]
    assert listed[0]["accuracy"] > 0.9
    assert "96 images verified" in shoal("data", "verify", labelled).out
    assert shoal("data", "info", labelled).code == 0
    assert "rotation:" in shoal("extractor", "train", "--data", data).out  # without labels


def test_a_seed_makes_the_same_extractor_again(shoal: Shoal, data: Path) -> None:
    first, again, other = (
        shoal("extractor", "train", "--data", data, "--kind", "random", "--seed", seed).out for seed in ("7", "7", "8")
    )
    assert first == again != other
    assert len(list((data / "extractors").iterdir())) == 2


def test_what_an_extractor_cannot_be_made_of(shoal: Shoal, data: Path) -> None:
    refused(shoal("extractor", "train", "--data", data, "--kind", "classifier"), "has no labels", "--kind rotation")
    refused(shoal("extractor", "train", "--data", data, "--kind", "rotatoin"), "rotatoin", "did you mean 'rotation'")
    refused(shoal("extractor", "train", "--data", data, "--split", "trian"), "trian", "did you mean 'train'")
    refused(shoal("extractor", "train", "--data", "nowhere"), "nowhere", "does not exist")
    assert not (data / "extractors").exists()


def test_what_cannot_be_measured(shoal: Shoal, trained: Path, gan: Path) -> None:
    for run in (trained, gan):
        refused(shoal("eval", run, "--num", "33"), "33 images", "'test'", "has 32", "--num 32")
    refused(shoal("eval", gan, "--num", "1"), "needs 2")
    refused(shoal("eval", trained, "--split", "tset"), "tset", "did you mean 'test'")
    refused(shoal("eval", trained, "--extractor", "random"), "generates no images", "--extractor", "leave it out")
    refused(shoal("eval", trained, "--inception-weights", "w.pth"), "generates no images", "--inception-weights")


def test_extractors_that_do_not_fit(shoal: Shoal, gan: Path, labelled: Path, data: Path, tmp_path: Path) -> None:
    refused(shoal("eval", gan, "--extractor", "classifer"), "no extractor 'classifer'", "did you mean 'classifier'")
    refused(shoal("eval", gan, "--extractor", "random", "--inception-weights", "x"), "exclude each other", "give one")
    refused(shoal("eval", gan, "--inception-weights", "x.pth"), "x.pth is not a file", "weights-inception-2015-12-05")
    (tmp_path / "x.pth").write_bytes(b"something else")
    refused(shoal("eval", gan, "--inception-weights", "x.pth"), "sha256", "6726825d", "FID")
    made = shoal("extractor", "train", "--data", data)
    path = made.out.partition(": ")[0]
    refused(shoal("eval", gan, "--extractor", path), "1x28x28", str(labelled), "1x12x12", "shoal extractor train")
    shutil.copytree(Path(path).parent, labelled / "extractors")
    assert shoal("eval", gan).code == 0  # passed over
    assert "no: other data" in shoal("extractor", "list", "--data", labelled).out


def test_two_workers_measure_what_one_does(
    shoal: Shoal, gan: Path, labelled: Path, launch_world: Callable[..., list[str]]
) -> None:
    alone = json.loads(shoal("eval", gan, "--json").out)
    said = launch_world(2, "-m", "shoal_ray.cli", "eval", gan, "--json")
    assert said[1] == ""
    together = json.loads(said[0])
    assert together == json.loads((gan / "eval.json").read_text())
    assert together["metrics"] == pytest.approx(alone["metrics"], rel=1e-9, abs=1e-12)
    assert together["extractor"] == alone["extractor"]
