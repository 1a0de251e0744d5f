"""``init_from=RUN`` on the command line: what is told, noted, refused, and needed later."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoal.checkpoint import newest

Shoal = Callable[..., Any]


@pytest.fixture
def words(tiny: Sequence[str], data: Path) -> Sequence[str | Path]:
    return ("train", "seed-autoencoder", *tiny, "--data", data, "--local")


def refused(said: Any, *parts: str) -> None:
    assert said.code == 2
    for part in ("error: ", *parts):
        assert part in said.error


def noted(run: Path) -> Any:
    return json.loads((run / "environment.json").read_text())["init_from"]


def test_what_is_taken_is_told_before_training_and_noted(
    shoal: Shoal, trained: Path, words: Sequence[str | Path], tmp_path: Path
) -> None:
    said = shoal(*words, "--out", "next", "init_from=run", "nets.latent=5")
    assert said.code == 0, said.error
    summary = (
        f"starts from {trained} at sample 320: 5 of 8 tensors taken; new: encoder.3.weight [5, 8] (there [3, 8]),"
        " encoder.3.bias [5] (there [3]), decoder.0.weight [8, 5] (there [8, 3])"
    )
    lines = said.out.splitlines()
    assert lines.index(summary) < next(index for index, line in enumerate(lines) if line.startswith("samples "))
    assert yaml.safe_load((tmp_path / "next" / "config.yaml").read_text())["init_from"] == str(trained)
    told = noted(tmp_path / "next")
    assert (told["run"], told["samples"], len(told["taken"])) == (str(trained), 320, 5)
    assert told["left"]["encoder.3.bias"] == {"here": [5], "there": [3]}


def test_a_resumed_run_keeps_its_note_and_needs_the_source_no_more(
    shoal: Shoal, trained: Path, words: Sequence[str | Path], tmp_path: Path
) -> None:
    assert shoal(*words, "--out", "next", "init_from=run").code == 0
    before = noted(tmp_path / "next")
    assert len(before["taken"]) == 8
    shutil.rmtree(trained)
    said = shoal("train", "--resume", "--out", "next", "--local", "duration_samples=480", "init_from=run")
    assert said.code == 0, said.error
    assert "starts from" not in said.out
    assert noted(tmp_path / "next") == before
    last = newest(tmp_path / "next" / "checkpoints")
    assert last is not None
    assert last.samples == 480
    refused(shoal("train", "--resume", "--out", "next", "--local", "init_from=other"), "init_from may not change")
    refused(shoal("train", "--resume", "--out", "next", "--local", "init_from="), "init_from may not change")


def test_a_run_without_a_checkpoint_of_its_own_starts_from_the_source_again(
    shoal: Shoal, trained: Path, words: Sequence[str | Path], tmp_path: Path
) -> None:
    assert shoal(*words, "--out", "next", "init_from=run").code == 0
    expected = newest(tmp_path / "next" / "checkpoints")
    assert expected is not None
    tensors = expected.tensors()
    shutil.rmtree(tmp_path / "next" / "checkpoints")
    said = shoal("train", "--resume", "--out", "next", "--local")
    assert "all 8 tensors taken" in said.out
    again = newest(tmp_path / "next" / "checkpoints")
    assert again is not None
    assert all(tensor.equal(tensors[name]) for name, tensor in again.tensors().items())

    shutil.rmtree(tmp_path / "next" / "checkpoints")
    shutil.rmtree(trained)
    refused(shoal("train", "--resume", "--out", "next", "--local"), f"init_from={trained} is not a run directory")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("init_from=nowhere", ["nowhere is not a run directory", "give the --out of a training run"]),
        ("init_from=next", ["next is the run itself", "another --out"]),
        ("init_from=bare", ["bare has no checkpoint yet"]),
        ("init_frm=run", ["unknown key init_frm", "init_from"]),
    ],
)
def test_a_source_that_cannot_be_used_is_refused_before_anything_is_written(
    shoal: Shoal, trained: Path, words: Sequence[str | Path], tmp_path: Path, override: str, parts: Sequence[str]
) -> None:
    shutil.copytree(trained, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    refused(shoal(*words, "--out", "next", override), *parts)
    assert not (tmp_path / "next").exists()


def test_networks_with_nothing_in_common_are_refused(
    shoal: Shoal, trained: Path, words: Sequence[str | Path], tmp_path: Path
) -> None:
    said = shoal(*words, "--out", "next", "init_from=run", "nets.hidden=[9]", "nets.latent=4", "data.range=symmetric")
    assert said.code == 0  # the output's bias is common to both
    said = shoal(*words, "--out", "third", "init_from=run", "nets.name=conv", "nets.hidden=9", "nets.width=4")
    refused(said, f"init_from={trained}", "none of its tensors (decoder, encoder)", "leave init_from out")
    assert not (tmp_path / "third").exists()
