"""``shoal runs``: a line for every run of a folder."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal.run import Run

Shoal = Callable[..., Any]


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A finished run, an older one in a group, and what is no run."""
    folder = tmp_path / "runs"
    shutil.copytree(trained, folder / "new")
    shutil.copytree(trained, folder / "group" / "old")
    (folder / "photos").mkdir()
    os.utime(folder / "group" / "old" / "metrics.jsonl", (1_000_000_000, 1_000_000_000))
    os.utime(folder / "photos", (500_000_000, 500_000_000))
    return folder


def names(said: Any) -> list[str]:
    return [entry["name"] for entry in json.loads(said.out)]


def test_runs_are_listed_newest_first_or_by_name(shoal: Shoal, folder: Path) -> None:
    assert names(shoal("runs", "--json")) == ["new", "group/old", "photos"]  # runs/ is where it looks by itself
    assert names(shoal("runs", folder, "--sort", "name", "--json")) == ["group/old", "new", "photos"]
    said = shoal("runs", folder, "--sort", "size")
    assert said.code == 2


def test_a_line_tells_all_of_a_run(shoal: Shoal, folder: Path) -> None:
    shoal("eval", folder / "new")
    mse = json.loads((folder / "new" / "eval.json").read_text())["metrics"]["quality/mse"]
    said = shoal("runs", folder)
    heading, new, old, photos = (line for line in said.out.splitlines() if line.strip(" ─"))
    for column in ("run", "model", "state", "samples", "last loss", "mse", "psnr", "workers", "when", "notes"):
        assert f" {column} " in heading
    for part in (" new ", "autoencoder mlp latent 3", "finished", " 320 ", "reconstruction 0.", f"{mse:.4g}", " 1 "):
        assert part in new
    assert "%" not in new
    assert "group/old" in old
    assert "2001-09-" in old
    assert f"{mse:.4g}" not in old
    assert "not a run (no config.yaml)" in photos


def test_a_run_that_is_trained_now_and_one_that_was_stopped(shoal: Shoal, folder: Path) -> None:
    for path in (folder / "new", folder / "group" / "old"):
        config = path / "config.yaml"
        config.write_text(config.read_text().replace("duration_samples: 320", "duration_samples: 640"))
    with Run.open(folder / "new").locked():
        said = shoal("runs", folder)
    assert "running" in next(line for line in said.out.splitlines() if " new " in line)
    stopped = next(line for line in said.out.splitlines() if "group/old" in line)
    assert "stopped" in stopped
    assert "320 (50%)" in stopped


def test_a_measure_that_the_run_has_outgrown_says_when_it_was_taken(shoal: Shoal, folder: Path) -> None:
    evaluation = {"split": "test", "num_samples": 32, "metrics": {"fd/cnn:1": 12.5, "fid": 3.25}, "samples": 160}
    (folder / "new" / "eval.json").write_text(json.dumps(evaluation))
    said = shoal("runs", folder)
    assert "12.5 (at 160)" in said.out
    assert "3.25 (at 160)" in said.out
    (folder / "new" / "eval.json").write_text(json.dumps(evaluation | {"samples": 320}))
    assert "(at " not in shoal("runs", folder).out


def test_json_is_whole_even_of_what_is_damaged(shoal: Shoal, folder: Path) -> None:
    (folder / "new" / "config.yaml").write_text("{")
    entries = {entry["name"]: entry for entry in json.loads(shoal("runs", folder, "--json").out)}
    assert entries["new"]["notes"] == ["config.yaml is damaged"]
    assert entries["new"]["state"] is None
    old = entries["group/old"]
    assert (old["state"], old["samples"], old["duration_samples"], old["workers"]) == ("finished", 320, 320, 1)
    assert old["when"] == "2001-09-09T01:46:40+00:00"
    assert old["path"] == str(folder / "group" / "old")
    assert "loss/reconstruction" in old["losses"]


def test_a_folder_without_runs_or_none_at_all(shoal: Shoal, tmp_path: Path) -> None:
    said = shoal("runs")
    assert said.code == 2
    assert "runs is not a directory; give the folder with your runs" in said.error
    (tmp_path / "empty").mkdir()
    said = shoal("runs", "empty")
    assert (said.code, said.out) == (0, "no runs in empty; `shoal train` makes them\n")
    assert shoal("runs", "empty", "--json").out.strip() == "[]"
