"""The same command again begins a run, or goes on with it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.errors import ConfigError
from shoal.run import Run
from shoal_ray.launch.again import words_for


def test_a_run_that_is_not_there_is_begun_as_asked(tmp_path: Path) -> None:
    words = ["train", "vae", "--data", "data/x", f"--out={tmp_path / 'new'}", "optim.lr=1e-3", "--workers", "2"]
    assert words_for(words) == words


@pytest.mark.parametrize("joined", [True, False])
def test_a_run_that_is_there_goes_on_with_as_much_as_asked(joined: bool, make_run: Callable[..., Run]) -> None:
    run = make_run("autoencoder")
    out = [f"--out={run.path}"] if joined else ["--out", str(run.path)]
    words = ["train", "vae", "--data", "data/x", *out, "optim.lr=1e-3", "--workers=2", "--quarantine"]
    words += ["--address", "10.0.0.1:6379", "--plugin", "mine.py"]
    expected = ["train", "--resume", "--out", str(run.path), "--address", "10.0.0.1:6379", "--workers", "2"]
    assert words_for(words) == expected


def test_a_search_that_is_there_goes_on(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text("")
    words = ["tune", "vae-pbt", "--out", str(tmp_path), "--population", "8", "--address", "auto"]
    assert words_for(words) == ["tune", "--resume", "--out", str(tmp_path), "--address", "auto"]


@pytest.mark.parametrize("words", [[], ["eval", "--out", "x"], ["train", "vae", "--data", "data/x"]])
def test_what_cannot_be_found_again_is_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"train or tune|no --out"):
        words_for(words)


def test_is_told_without_a_traceback() -> None:
    command = [sys.executable, "-m", "shoal_ray.launch.again", "train", "vae"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "no --out" in done.stderr
