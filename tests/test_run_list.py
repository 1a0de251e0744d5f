"""What a folder of runs tells without reading more than small files, however damaged they are."""

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import RunError
from shoal.execute import execute
from shoal.loop import Tick
from shoal.run import Run, read_rows
from shoal.run_files import is_locked
from shoal.run_list import LONGEST_ROW_BYTES, TAIL_BYTES, RunEntry, describe, list_runs, newest_row
from shoal.world import World

MakeRun = Callable[..., Run]
Finish = Callable[..., list[Tick]]


@pytest.fixture
def trained(make_run: MakeRun) -> Run:
    run = make_run("autoencoder", "duration_samples=60")
    execute(run, World.local("cpu"))
    return run


def by_name(entries: list[RunEntry]) -> dict[str, RunEntry]:
    return {entry.name: entry for entry in entries}


def test_a_finished_run_tells_what_it_learned_and_how_far(trained: Run) -> None:
    (trained.path / "eval.json").write_text(
        json.dumps({"split": "test", "num_samples": 32, "metrics": {"quality/mse": 0.5, "odd": None}, "samples": 40})
    )
    entry = describe(trained.path, "it")
    assert (entry.name, entry.state, entry.notes) == ("it", "finished", ())
    assert (entry.objective, entry.nets, entry.latent) == ("autoencoder", "mlp", 4)
    assert (entry.samples, entry.duration_samples) == (60, 60)
    assert entry.losses == {"loss/reconstruction": trained.metrics()[-1]["loss/reconstruction"]}
    assert (entry.measures, entry.measured_at) == ({"quality/mse": 0.5}, 40)
    assert entry.when == (trained.path / "metrics.jsonl").stat().st_mtime


def test_a_run_is_running_while_its_lock_is_held_and_stopped_when_its_end_is_not_reached(trained: Run) -> None:
    trained.resumed(["duration_samples=600"]).save(trained.data, {"workers": 3})
    entry = describe(trained.path, "it")
    assert (entry.state, entry.workers, entry.samples, entry.duration_samples) == ("stopped", 3, 60, 600)
    with trained.locked():
        assert describe(trained.path, "it").state == "running"
        with trained.path.joinpath(".lock").open("rb") as file, pytest.raises(BlockingIOError):  # still held
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert describe(trained.path, "it").state == "stopped"
    with trained.locked():  # looking has left no lock behind
        pass
    assert not is_locked(trained.path / "no-such-file")


def test_a_run_without_rows_stands_where_its_newest_checkpoint_does(trained: Run, make_run: MakeRun) -> None:
    (trained.path / "metrics.jsonl").unlink()
    assert (describe(trained.path, "it").samples, describe(trained.path, "it").state) == (60, "finished")
    fresh = describe(make_run().path, "new")
    assert (fresh.samples, fresh.state, fresh.losses) == (0, "stopped", {})
    assert fresh.when > 0


def test_runs_are_found_in_a_folder_and_in_the_folders_in_it(
    make_run: MakeRun, tmp_path: Path, small_data: Path, tiny: Callable[..., Any]
) -> None:
    make_run()
    for name in ("group/one", "group/two", "group/deeper/three", ".hidden"):
        Run.create(tmp_path / name, tiny(), small_data)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "file").write_text("")
    found = by_name(list_runs(tmp_path))
    assert sorted(found) == ["foreign", "group/one", "group/two", "run-0"]
    assert found["foreign"].state is None
    assert found["foreign"].notes == ("not a run (no config.yaml)",)
    assert found["group/one"].path == tmp_path / "group" / "one"
    assert [entry.name for entry in list_runs(tmp_path / "group" / "one")] == ["one"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere is not a directory; give the folder with your runs"):
        list_runs(tmp_path / "nowhere")
    assert list_runs(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "content", "note"),
    [
        ("config.yaml", b"{", "config.yaml is damaged"),
        ("config.yaml", b"\xff\xfe\x00", "config.yaml is damaged"),
        ("config.yaml", b"[1, 2]", "config.yaml is damaged"),
        ("config.yaml", b"? [1, {2: 3}]\n: 4", "config.yaml is damaged"),
        ("config.yaml", b"seed: 3", "config.yaml lacks keys of a run"),
        ("config.yaml", b"objective: 3\nnets: [4]\nduration_samples: many", "config.yaml lacks keys of a run"),
        ("environment.json", b'{"data": ', "environment.json is damaged"),
        ("environment.json", b"[" * 100_000, "environment.json is damaged"),
        ("eval.json", b"null", "eval.json is damaged"),
        ("eval.json", b"", "eval.json is damaged"),
    ],
)
def test_a_damaged_file_is_noted(trained: Run, file: str, content: bytes, note: str) -> None:
    (trained.path / file).write_bytes(content)
    assert describe(trained.path, "it").notes == (note,)


def test_what_is_missing_or_odd_is_noted_or_passed_over(trained: Run) -> None:
    (trained.path / "eval.json").write_text('{"metrics": [1], "samples": "x"}')
    (trained.path / "metrics.jsonl").write_text('{"samples": true, "loss/a": NaN, "loss/b": "x", "loss/c": 1}\n')
    (trained.path / "checkpoints" / "²").mkdir()
    (trained.path / "environment.json").unlink()
    entry = describe(trained.path, "it")
    assert entry.notes == ("no environment.json",)
    assert (entry.losses, entry.measures, entry.measured_at, entry.samples) == ({"loss/c": 1}, {}, None, 60)
    (trained.path / "config.yaml").unlink()
    (trained.path / "config.yaml").mkdir()
    assert describe(trained.path, "it").notes == ("config.yaml: Is a directory",)


@given(
    st.lists(
        st.one_of(
            st.builds(
                lambda clock, size: json.dumps({"samples": clock, "x": "y" * size}).encode(),
                st.integers(0, 9),
                st.sampled_from([0, 10, TAIL_BYTES - 40, TAIL_BYTES, 5 * TAIL_BYTES]),
            ),
            st.sampled_from([b"", b"[1]", b"{", b"\xff"]),
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_the_newest_row_is_the_last_whole_one(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], cut_off: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines) + (b'{"samples": 99, "x"' if cut_off else b""))
    rows = [json.loads(line) for line in lines if line.startswith(b'{"')]
    assert newest_row(path) == (rows[-1] if rows else {})


def test_of_a_long_file_only_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 33)  # 8 GiB of nothing: a sparse file
        file.seek(0, os.SEEK_END)
        file.write(b'\n{"samples": 5}\n')
    assert newest_row(path) == {"samples": 5}
    with path.open("ab") as file:
        file.truncate(1 << 33)
    assert newest_row(path) == {}  # gives up after LONGEST_ROW_BYTES
    assert LONGEST_ROW_BYTES < 1 << 30
    assert newest_row(tmp_path / "none") == {}


def test_the_newest_row_of_a_run_is_the_one_that_the_whole_file_ends_with(trained: Run) -> None:
    path = trained.path / "metrics.jsonl"
    assert newest_row(path) == read_rows(path)[-1]


def test_a_configuration_reads_as_it_was_written(trained: Run) -> None:
    """The fast loader reads what the slow one wrote."""
    config = yaml.safe_load((trained.path / "config.yaml").read_text())
    entry = describe(trained.path, "it")
    assert entry.objective == config["objective"]["name"]
    assert entry.latent == config["nets"]["latent"]
