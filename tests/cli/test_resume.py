"""What a resumed run refuses, and what keeps two processes off one run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import RunError
from shoal.run import Run

Shoal = Callable[..., Any]


def refused(said: Any, *parts: str) -> None:
    assert said.code == 2
    for part in parts:
        assert part in said.error


def test_a_configuration_that_was_edited_by_hand_is_found_out(shoal: Shoal, trained: Path) -> None:
    file = trained / "config.yaml"
    file.write_text(file.read_text().replace("seed: 0", "seed: 7"))
    refused(shoal("train", "--resume", "--out", trained, "--local", "duration_samples=640"), "seed may not change")


def test_another_config_than_the_runs_own_is_refused(shoal: Shoal, trained: Path) -> None:
    refused(shoal("train", "dcgan", "--resume", "--out", trained, "--local"), "'autoencoder'", "dcgan", "--out")


def test_a_plug_in_is_the_runs_own(shoal: Shoal, trained: Path) -> None:
    refused(shoal("train", "--resume", "--out", trained, "--local", "--plugin", "x.py"), "--plugin x.py", "own copy")


def test_a_duration_before_the_clock_is_refused_and_not_written(shoal: Shoal, trained: Path) -> None:
    before = (trained / "config.yaml").read_text()
    said = shoal("train", "--resume", "--out", trained, "--local", "duration_samples=100")
    refused(said, "duration_samples=100", "before sample 320", "duration_samples > 320")
    assert (trained / "config.yaml").read_text() == before


def test_flags_for_a_cluster_do_not_go_with_local(shoal: Shoal, data: Path) -> None:
    words = ("train", "seed-autoencoder", "--data", data, "--local")
    refused(shoal(*words, "--gpus-per-worker", "1"), "--gpus-per-worker")
    refused(shoal(*words, "--cpus-per-worker", "1"), "--cpus-per-worker")


def test_one_process_at_a_time_trains_a_run_and_anyone_may_look(shoal: Shoal, trained: Path) -> None:
    with Run.open(trained).locked():
        with pytest.raises(RunError, match="being trained by another process"), Run.open(trained).locked():
            pass
        said = shoal("train", "--resume", "--out", trained, "--local", "duration_samples=640")
        refused(said, "being trained by another process")
        assert "duration_samples: 320" in (trained / "config.yaml").read_text()
        assert shoal("eval", trained).code == 0
    assert shoal("train", "--resume", "--out", trained, "--local", "duration_samples=640").code == 0


def test_a_run_that_was_killed_before_its_first_checkpoint_repeats_no_step_in_tensorboard(
    shoal: Shoal, trained: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for path in (trained / "checkpoints").iterdir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    assert shoal("train", "--resume", "--out", trained, "--local").code == 0
    events = EventAccumulator(str(trained / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    steps = [event.step for event in events.Scalars("loss/reconstruction")]
    assert steps == sorted(set(steps))
    assert steps[-1] == 320
    assert len(events.Tensors("config/text_summary")) == 1
