"""Whole runs by the command line, without Ray: pictures, TensorBoard, signals, resume, colour images from a folder."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shoal.checkpoint import newest, saved

Shoal = Callable[..., Any]

DEADLINE_SEC = 120


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def size_of(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as image:
        image.load()
        return image.size


def events(run: Path) -> EventAccumulator:
    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    return found


def test_a_run_directory_holds_what_it_promises(shoal: Shoal, trained: Path, data: Path) -> None:
    assert {path.name for path in trained.iterdir()} >= {"config.yaml", "environment.json", "metrics.jsonl", "images"}
    assert [row["samples"] for row in rows(trained)] == [32, 64, 80, 96, 128, 160, 192, 224, 240, 256, 288, 320]
    assert [path.name for path in saved(trained / "checkpoints")] == ["000000000320", "000000000240", "000000000160"]
    assert size_of(trained / "images" / "reconstructions-000000000320.png") == (8 * 30 - 2, 4 * 30 - 2)
    facts = json.loads((trained / "environment.json").read_text())
    assert facts["data"] == str(data)
    assert facts["workers"] == 1


def test_results_of_a_run(shoal: Shoal, trained: Path) -> None:
    said = shoal("eval", trained, "--json")
    assert said.code == 0
    assert json.loads(said.out) == json.loads((trained / "eval.json").read_text())
    measured = json.loads(said.out)
    assert (measured["split"], measured["num_samples"]) == ("test", 32)
    assert 0 < measured["metrics"]["quality/mse"] < 0.2
    assert "quality/psnr" in shoal("eval", trained).out
    assert shoal("reconstruct", trained, "--num", "20").out.strip() == str(trained / "reconstructions.png")
    assert size_of(trained / "reconstructions.png") == (16 * 30 - 2, 4 * 30 - 2)


def test_data_commands(shoal: Shoal, data: Path) -> None:
    assert "96 images verified" in shoal("data", "verify", data).out
    assert json.loads(shoal("data", "info", data, "--json").out)["splits"] == {"train": 64, "test": 32}
    assert "1, 28, 28" in shoal("data", "info", data).out


def test_presets_are_listed_and_shown_whole(shoal: Shoal) -> None:
    listed = shoal("presets").out
    for name in ("autoencoder", "dcgan", "seed-autoencoder", "seed-gan"):
        assert name in listed
    shown = shoal("presets", "seed-gan").out
    assert "shoal train seed-gan" in shown
    assert "betas:" in shown


def test_tensorboard_shows_every_tick_once_and_the_configuration(trained: Path) -> None:
    found = events(trained)
    assert [event.step for event in found.Scalars("loss/reconstruction")] == [row["samples"] for row in rows(trained)]
    assert [event.value for event in found.Scalars("loss/reconstruction")] == pytest.approx(
        [row["loss/reconstruction"] for row in rows(trained)]
    )
    assert [event.step for event in found.Images("images/reconstructions")] == [160, 320]
    assert b"objective:" in found.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


def test_a_resumed_run_goes_on_in_the_same_event_directory_without_repeated_steps(shoal: Shoal, trained: Path) -> None:
    # As a kill would leave it: the last rows and events tell of steps after the newest checkpoint that is left.
    newest_two = saved(trained / "checkpoints")[:2]
    for path in newest_two:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    assert shoal("train", "--resume", "--out", trained, "--local", "duration_samples=480").code == 0
    steps = [row["samples"] for row in rows(trained)]
    assert steps == sorted(set(steps))
    assert steps[-1] == 480
    assert [event.step for event in events(trained).Scalars("loss/reconstruction")] == steps


def test_a_finished_run_that_is_resumed_changes_nothing(shoal: Shoal, trained: Path) -> None:
    before = newest(trained / "checkpoints")
    said = shoal("train", "--resume", "--out", trained, "--local")
    assert said.code == 0
    assert "finished" in said.out
    after = newest(trained / "checkpoints")
    assert before is not None
    assert after is not None
    assert before.samples == after.samples == 320


def start(*words: str | Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "shoal_ray.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Look until something is there; fail with what the process said if it ends first or takes too long."""
    deadline = time.monotonic() + DEADLINE_SEC
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)  # between two looks; nothing relies on its length


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_of_that_very_sample_and_resume_goes_on_from_it(
    signum: signal.Signals, shoal: Shoal, data: Path, tiny: Sequence[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words: tuple[str | Path, ...] = ("seed-autoencoder", *tiny, "report.images_every_samples=0", "--data", data)
    process = start("train", *words, "duration_samples=1e9", "checkpoint.every_samples=0", "--out", run, "--local")
    wait_until(lambda: (run / "metrics.jsonl").exists() and len(rows(run)) > 2, process)
    process.send_signal(signum)
    said = process.communicate(timeout=DEADLINE_SEC)[0]
    assert process.returncode == 128 + signum, said
    assert "Traceback" not in said
    left = newest(run / "checkpoints")
    assert left is not None
    stopped_at = left.samples
    assert rows(run)[-1]["samples"] == stopped_at

    end = stopped_at + 320
    assert shoal("train", "--resume", "--out", run, "--local", f"duration_samples={end}").code == 0
    assert shoal("train", *words, f"duration_samples={end}", "--out", "straight", "--local").code == 0
    one, other = newest(run / "checkpoints"), newest(tmp_path / "straight" / "checkpoints")
    assert one is not None
    assert other is not None
    for name, tensor in other.tensors().items():
        assert torch.equal(one.tensors()[name], tensor), name


def test_a_colour_gan_of_64_pixels_from_a_folder_of_pngs(shoal: Shoal, tmp_path: Path) -> None:
    """End to end: files of odd sizes and modes, imported, trained with batch norm and an average, and sampled."""
    rng = np.random.default_rng(0)
    for index in range(40):
        folder = tmp_path / "photos" / ("warm" if index % 2 else "cold")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (70 + index, 90, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels)
        (picture.convert("P") if index == 5 else picture).save(folder / f"{index:02}.png")
    assert shoal("data", "import", "folder", "photos", "--size", "64", "--mode", "RGB", "--out", "data").code == 0
    sizes = ("nets.width=8", "nets.latent=16", "batch=8", "duration_samples=64", "report.every_samples=16")
    assert shoal("train", "dcgan", *sizes, "--data", "data", "--out", "run", "--local").code == 0
    last = rows(tmp_path / "run")[-1]
    assert last["samples"] == 64
    assert {"loss/generator", "loss/discriminator", "optim/lr_generator", "score/real"} <= last.keys()
    assert shoal("sample", "run", "--num", "9", "--out", "grid.png").code == 0
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.mode == "RGB"
        assert grid.size == (3 * 66 - 2, 3 * 66 - 2)
        assert np.asarray(grid).std() > 1  # not one flat colour


def test_an_objective_of_ones_own(shoal: Shoal, data: Path, tiny: Sequence[str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from typing import Literal\n"
        "from shoal.objectives import Autoencoder\n"
        "from shoal.objectives.autoencoder import AutoencoderConfig\n"
        "class Config(AutoencoderConfig):\n"
        "    name: Literal['absolute'] = 'absolute'\n"
        "    weight: float = 2.0\n"
        "class Absolute(Autoencoder):\n"
        "    Config = Config\n"
        "    def __init__(self, config, *rest):\n"
        "        super().__init__(config, *rest)\n"
        "        self.weight = config.weight\n"
        "    def loss(self, phase, batch, noise):\n"
        "        error = (self.decode(self.encode(batch.images)) - batch.images).abs().flatten(1).mean(1)\n"
        "        return self.weight * error.mean(), {'loss/absolute': error}\n"
    )
    words = ("seed-autoencoder", "objective.name=absolute", "objective.weight=3", *tiny, "--data", data)
    assert shoal("train", *words, "--out", "run", "--local", "--plugin", "mine.py").code == 0
    (tmp_path / "mine.py").unlink()  # the run carries its own copy
    assert rows(tmp_path / "run")[-1]["loss/absolute"] > 0
    assert shoal("eval", "run").code == 0
    assert shoal("train", "--resume", "--out", "run", "--local", "duration_samples=400").code == 0
