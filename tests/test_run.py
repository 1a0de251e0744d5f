import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoal.checkpoint import Checkpoint
from shoal.config import RunConfig
from shoal.errors import CheckpointError, ConfigError, RunError, ShoalError
from shoal.loop import Tick
from shoal.objectives import OBJECTIVES
from shoal.run import Run, read_rows

Tiny = Callable[..., RunConfig]
MakeRun = Callable[..., Run]
Finish = Callable[..., list[Tick]]
Newest = Callable[[Run], Checkpoint]

PLUGIN = """
from typing import Literal

from shoal.objectives import Autoencoder
from shoal.objectives.autoencoder import AutoencoderConfig


class FishConfig(AutoencoderConfig):
    name: Literal["fish"] = "fish"


class Fish(Autoencoder):
    Config = FishConfig
"""


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_run_carries_all_that_it_needs(tmp_path: Path, tiny: Tiny, small_data: Path) -> None:
    config = tiny("gan")
    run = Run.create(tmp_path / "deep" / "run", config, small_data, facts={"workers": 3})
    assert sorted(file.name for file in run.path.iterdir()) == ["config.yaml", "environment.json"]
    assert yaml.safe_load((run.path / "config.yaml").read_text()) == config.model_dump(mode="json")
    facts = json.loads((run.path / "environment.json").read_text())
    assert facts["data"] == str(small_data)
    assert facts["workers"] == 3
    assert set(facts["versions"]) == {"shoal", "torch", "ray", "pyarrow", "numpy"}
    assert facts["versions"]["torch"]
    assert facts["python"].startswith("3.")


def test_an_opened_run_is_the_one_that_was_made(make_run: MakeRun) -> None:
    for kind in ("autoencoder", "gan"):
        run = make_run(kind)
        assert Run.open(run.path) == run


def test_a_run_is_found_again_from_another_folder(
    tmp_path: Path, tiny: Tiny, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_data.parent)
    run = Run.create(tmp_path / "run", tiny(), Path(small_data.name))
    monkeypatch.chdir(tmp_path)
    assert Run.open(Path("run")) == run
    assert run.data.local == small_data
    assert run.path.is_absolute()


def test_a_run_is_not_written_over(make_run: MakeRun, tiny: Tiny, small_data: Path) -> None:
    run = make_run()
    before = tree(run.path)
    with pytest.raises(RunError, match=r"run-0 already holds a run; go on with --resume, or give another --out"):
        Run.create(run.path, tiny("gan"), small_data)
    assert tree(run.path) == before


def test_neither_is_another_folder_or_file(tmp_path: Path, tiny: Tiny, small_data: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("more of it")
    before = tree(tmp_path)
    for name in ("folder", "file"):
        with pytest.raises(RunError, match=rf"{name} exists and is not a run; give another --out"):
            Run.create(tmp_path / name, tiny(), small_data)
    assert tree(tmp_path) == before


def test_an_empty_folder_will_do(tmp_path: Path, tiny: Tiny, small_data: Path) -> None:
    (tmp_path / "run").mkdir()
    run = Run.create(tmp_path / "run", tiny(), small_data)
    assert Run.open(tmp_path / "run") == run


def test_a_run_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, tiny: Tiny, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            Run.create(tmp_path / "run", tiny(), small_data)
    with pytest.raises(FileNotFoundError):
        Run.create(tmp_path / "run", tiny(), small_data, plugin=tmp_path / "missing.py")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["nowhere", "folder", "file"])
def test_what_is_no_run_cannot_be_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=rf"{name} is not a run directory \(no config.yaml in it\); give the --out of a"):
        Run.open(tmp_path / name)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.yaml", "batch: [3"),
        ("config.yaml", ""),
        ("config.yaml", "- 3"),
        ("config.yaml", "objective: {name: gan}\nnets: {name: mlp}\nbtach: 3"),
        ("environment.json", '{"data": "/da'),
        ("environment.json", "[]"),
        ("environment.json", "{}"),
        ("environment.json", None),
    ],
)
def test_a_run_whose_own_files_are_damaged_says_which(make_run: MakeRun, file: str, text: str | None) -> None:
    run = make_run()
    if text is None:
        (run.path / file).unlink()
    else:
        (run.path / file).write_text(text)
    with pytest.raises(ShoalError, match=rf"{file}|unknown key btach \(did you mean 'batch'\?\)"):
        Run.open(run.path)


@pytest.mark.usefixtures("registry")
def test_a_run_brings_its_plugin_along(tmp_path: Path, small_data: Path, tiny: Tiny) -> None:
    from shoal.config import with_overrides
    from shoal.objectives import load_plugin

    source = tmp_path / "my_objective.py"
    source.write_text(PLUGIN)
    load_plugin(source)
    run = Run.create(tmp_path / "run", with_overrides(tiny(), ["objective.name=fish"]), small_data, plugin=source)
    source.unlink()
    OBJECTIVES.pop("fish")
    again = Run.open(run.path)
    assert again.config.objective.name == "fish"
    assert again.config.to_yaml() == run.config.to_yaml()
    assert "fish" in OBJECTIVES


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("batch=10", "batch"),
        ("seed=1", "seed"),
        ("nets.latent=6", "nets.latent"),
        ("nets.hidden=[16, 16]", "nets.hidden"),
        ("objective.loss=minimax", "objective.loss"),
        ("optim.betas=[0.9, 0.9]", "optim.betas"),
        ("optim.name=sgd", "optim.name"),
        ("data.window_blocks=2", "data.window_blocks"),
        ("ema.half_life_samples=0", "ema.half_life_samples"),
    ],
)
def test_a_resume_refuses_by_name_what_would_make_it_another_run(make_run: MakeRun, override: str, key: str) -> None:
    run = make_run("gan")
    with pytest.raises(
        RunError, match=rf"^{key} may not change when a run is resumed; only duration_samples, optim.lr"
    ):
        run.resumed(["optim.lr=1e-4", override])


@pytest.mark.parametrize(
    "override",
    [
        "duration_samples=1e6",
        "optim.lr=1e-5",
        "report.every_samples=7",
        "report.images_every_samples=9",
        "checkpoint.every_samples=11",
        "checkpoint.keep=1",
        "optim.phases.generator.lr=1e-5",
        "optim.phases.discriminator.clip=1.0",
    ],
)
def test_a_resume_takes_what_keeps_it_the_same_run(make_run: MakeRun, override: str) -> None:
    run = make_run("gan")
    before = tree(run.path)
    changed = run.resumed([override])
    assert changed.config != run.config
    assert changed.path == run.path
    assert tree(run.path) == before
    saved = changed.save(run.data, {})
    assert Run.open(run.path) == saved == changed


def test_a_resume_without_changes_is_the_run(make_run: MakeRun) -> None:
    run = make_run("gan")
    assert run.resumed([]) == run
    assert run.resumed(["batch=20", "objective.loss=non_saturating"]) == run


def test_a_resume_refuses_unknown_keys_as_ever(make_run: MakeRun) -> None:
    with pytest.raises(ConfigError, match=r"unknown key optim.lrr \(did you mean 'optim.lr'\?\)"):
        make_run().resumed(["optim.lrr=1"])


def test_saving_notes_where_the_run_goes_on(make_run: MakeRun, colour_data: Path) -> None:
    run = make_run()
    moved = run.save(colour_data, {"workers": 5})
    assert moved.data.local == colour_data
    assert json.loads((run.path / "environment.json").read_text())["workers"] == 5
    assert Run.open(run.path).data.local == colour_data
    assert sorted(file.name for file in run.path.iterdir()) == ["config.yaml", "environment.json"]


def test_a_run_knows_its_newest_checkpoint(make_run: MakeRun, finish: Finish, newest: Newest) -> None:
    run = make_run()
    assert run.newest_checkpoint() is None
    finish(run)
    assert newest(run).samples == 200
    (newest(run).path / "state.json").write_text("{")
    passed_over: list[str] = []
    found = run.newest_checkpoint(passed_over)
    assert found is not None
    assert found.samples == 160
    assert len(passed_over) == 1
    assert "000000000200" in passed_over[0]
    for path in run.checkpoints.iterdir():
        (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="verifies; start anew with another --out"):
        run.newest_checkpoint()


def test_a_row_that_was_cut_off_is_no_row(make_run: MakeRun) -> None:
    run = make_run()
    assert run.metrics() == []
    whole: list[dict[str, Any]] = [{"samples": 20, "loss/x": 1.5}, {"samples": 40, "loss/x": 1.25}]
    text = "".join(json.dumps(row) + "\n" for row in whole)
    for cut in ("", '{"sam', '{"samples": 60}'):
        (run.path / "metrics.jsonl").write_text(text + cut)
        assert run.metrics() == whole == read_rows(run.path / "metrics.jsonl")
