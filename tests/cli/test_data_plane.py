"""Rare classes and damaged blocks by the command line: what is asked, what is said, what a resumed run remembers."""

import json
import shutil
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console
from rich.table import Table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shoal.checkpoint import newest
from shoal.data import DataSet
from shoal.data.write import write_dataset
from shoal_ray.cli.class_chart import class_chart

Shoal = Callable[..., Any]


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """64 + 32 images in blocks of 16, every sixteenth a dog."""
    images = np.random.default_rng(0).integers(0, 256, (96, 1, 28, 28), dtype=np.uint8)
    labels = (np.arange(96) % 16 == 5).astype(np.int64)
    write_dataset(
        tmp_path / "labelled",
        {"train": [(images[:64], labels[:64])], "test": [(images[64:], labels[64:])]},
        shape=(1, 28, 28),
        class_names=["cat", "dog"],
        source="test",
        rows_per_block=16,
        shard_bytes=2 * 16 * 784,
    )
    return tmp_path / "labelled"


@pytest.fixture
def damaged(labelled: Path, tmp_path: Path) -> Path:
    """Return the same with a changed byte in block 1 of the first shard."""
    path = Path(shutil.copytree(labelled, tmp_path / "damaged"))
    row = DataSet.open(labelled).rows("train", 20, 21).tobytes()
    content = bytearray((path / "shard-00000.arrow").read_bytes())
    content[content.index(row)] ^= 1
    (path / "shard-00000.arrow").write_bytes(content)
    return path


# --- balance ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("override", ["data.balance=uniform", "data.balance={cat: 0.5, dog: 0.5}"])
def test_what_an_epoch_draws_is_said_before_the_run_starts(
    shoal: Shoal, labelled: Path, tiny: Sequence[str], tmp_path: Path, override: str
) -> None:
    said = shoal("train", "seed-autoencoder", *tiny, override, "--data", labelled, "--out", tmp_path / "run", "--local")
    assert said.code == 0, said.error
    lines = said.out.splitlines()
    (cat,) = (number for number, line in enumerate(lines) if line.split()[:3] == ["cat", "60", "32"])
    assert lines[cat + 1].split()[:5] == ["dog", "4", "32", "50.00", "%"]
    assert cat < next(number for number, line in enumerate(lines) if line.startswith("samples "))
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["balance"] != "none"
    saved = newest(tmp_path / "run" / "checkpoints")
    assert saved is not None
    assert "balance" in saved.stream


def test_another_balance_is_no_resume(shoal: Shoal, labelled: Path, tiny: Sequence[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert shoal("train", "seed-autoencoder", *tiny, "--data", labelled, "--out", run, "--local").code == 0
    said = shoal("train", "--resume", "--out", run, "--local", "duration_samples=640", "data.balance=uniform")
    assert said.code == 2
    assert "data.balance may not change when a run is resumed" in " ".join(said.error.split())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.balance=unifrom", "did you mean 'uniform'?"),
        ("data.balance={dgo: 1}", "data.balance names an unknown class 'dgo' (did you mean 'dog'?); known: cat, dog"),
        ("data.balace=uniform", "unknown key data.balace (did you mean 'data.balance'?)"),
    ],
)
def test_a_bad_balance_is_refused_before_anything_is_written(
    shoal: Shoal, labelled: Path, tiny: Sequence[str], tmp_path: Path, override: str, message: str
) -> None:
    said = shoal("train", "seed-autoencoder", *tiny, override, "--data", labelled, "--out", tmp_path / "run", "--local")
    assert said.code == 2
    assert message in " ".join(said.error.split())
    assert not (tmp_path / "run").exists()


def printed(table: Table) -> list[str]:
    console = Console(width=100, record=True, file=StringIO())
    console.print(table)
    return console.export_text().splitlines()


def test_many_classes_are_shown_by_their_largest_and_smallest() -> None:
    table = class_chart("classes", [f"class {n}" for n in range(1000)], {"images": [*range(1000)]})
    lines = [line.split() for line in printed(table)]
    shown = [int(line[1]) for line in lines if line[:1] == ["class"] and line[1].isdecimal()]
    assert shown == [*range(999, 987, -1), *range(11, -1, -1)]
    assert ["…", "976", "others", "487,512", "97.60", "%"] in lines  # of 499,500: 11,922 and 66 are shown


def test_bars_are_as_long_as_their_counts() -> None:
    table = class_chart("classes", ["a", "b", "none"], {"all": [1, 1, 1], "drawn": [400, 100, 0]})
    lines = [line for line in printed(table) if "%" in line]
    assert [line.count("█") for line in lines] == [24, 6, 0]
    assert [line.split()[:4] for line in lines] == [
        ["a", "1", "400", "80.00"],
        ["b", "1", "100", "20.00"],
        ["none", "1", "0", "0.00"],
    ]


# --- quarantine -------------------------------------------------------------------------------------------------------


def test_damage_ends_a_run_and_with_quarantine_it_goes_on(
    shoal: Shoal, damaged: Path, tiny: Sequence[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["train", "seed-autoencoder", *tiny, "data.window_blocks=1", "--out", run, "--local"]
    said = shoal(*words, "--data", damaged)
    assert said.code == 2
    assert "block 1 of" in said.error
    assert "quarantine" not in said.out
    said = shoal("train", "--resume", "--out", run, "--local", "--quarantine")
    assert said.code == 0, said.error
    saved = newest(run / "checkpoints")
    assert saved is not None
    ((block, since),) = saved.stream["quarantine"]
    assert block == 1
    table = " ".join(said.out.replace("│", " ").split())
    assert f"quarantined block 1 of shard-00000.arrow (rows 16 to 31) since sample {since}" in table
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["samples"]: row.get("data/quarantined_blocks") for row in rows} == {
        row["samples"]: 1.0 if row["samples"] > since else None for row in rows
    }
    assert rows[-1]["data/quarantined_rows"] == 16
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    (text,) = events.Tensors("quarantine/text_summary")
    assert text.tensor_proto.string_val[0].decode().startswith("- block 1 of shard-00000.arrow (rows 16 to 31)")
    assert [event.step for event in events.Scalars("data/quarantined_blocks")] == [
        row["samples"] for row in rows if row["samples"] > since
    ]


@pytest.mark.parametrize(("flag", "remembered"), [("--quarantine", True), ("--no-quarantine", False), (None, False)])
def test_a_resumed_run_remembers_the_flag_and_a_new_word_counts_more(
    shoal: Shoal, labelled: Path, tiny: Sequence[str], tmp_path: Path, flag: str | None, remembered: bool
) -> None:
    def noted() -> object:
        return json.loads((tmp_path / "run" / "environment.json").read_text())["quarantine"]

    shoal(
        "train",
        "seed-autoencoder",
        *tiny,
        "--data",
        labelled,
        "--out",
        tmp_path / "run",
        "--local",
        *filter(None, [flag]),
    )
    assert noted() is remembered
    shoal("train", "--resume", "--out", tmp_path / "run", "--local", "duration_samples=352")
    assert noted() is remembered
    other = "--no-quarantine" if remembered else "--quarantine"
    shoal("train", "--resume", "--out", tmp_path / "run", "--local", "duration_samples=384", other)
    assert noted() is not remembered
