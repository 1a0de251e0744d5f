import json
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from shoal.checkpoint import Checkpoint, directory_name, saved
from shoal.errors import FencedError
from shoal.execute import Outcome, execute
from shoal.loop import Tick
from shoal.recorder import Recorder, last_row, newest_picture, save_png
from shoal.run import Run
from shoal.world import World

MakeRun = Callable[..., Run]
Finish = Callable[..., list[Tick]]
Newest = Callable[[Run], Checkpoint]
Differing = Callable[..., list[str]]
Measures = Callable[[Mapping[str, Any]], dict[str, Any]]

ALONE = World.local("cpu")


class Killed(BaseException):
    """What a test kills a run with."""


def tick(samples: int, **scalars: float) -> Tick:
    return Tick(samples, {f"loss/{name}": value for name, value in scalars.items()}, {}, None)


def samples_of(run: Run) -> list[int]:
    return [row["samples"] for row in run.metrics()]


def rows_of(run: Run) -> list[dict[str, Any]]:
    """Return the rows, without the time that they were written at, which is now."""
    rows = run.metrics()
    for row in rows:
        assert abs(row.pop("time", time.time()) - time.time()) < 600
    return rows


def temporary_files(run: Run) -> list[Path]:
    return [path for path in run.path.rglob("*") if path.name.endswith(".tmp")]


# --- the metrics file ---------------------------------------------------------------------------------------------


def test_a_row_per_tick_is_on_the_disk_at_once(make_run: MakeRun) -> None:
    run = make_run()
    with Recorder(run) as recorder:
        recorder.record(tick(20, x=1.5))
        assert rows_of(run) == [{"samples": 20, "loss/x": 1.5}]
        recorder.record(tick(40, x=0.1, y=1e-300))
        assert rows_of(run)[1] == {"samples": 40, "loss/x": 0.1, "loss/y": 1e-300}
    assert last_row(run.path) == run.metrics()[1]


def test_a_run_without_rows_has_no_last_one(make_run: MakeRun) -> None:
    assert last_row(make_run().path) == {}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    written=st.lists(st.integers(1, 9), unique=True).map(sorted),
    resumed_at=st.integers(0, 9),
    cut=st.sampled_from(["", "{", '{"samples": 7', '{"samples": 7, "loss/x": 1.0}']),
)
def test_rows_of_lost_steps_and_half_rows_are_dropped(
    make_run: MakeRun, written: list[int], resumed_at: int, cut: str
) -> None:
    run = make_run()
    path = run.path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"samples": samples}) + "\n" for samples in written) + cut)
    with Recorder(run, samples=resumed_at) as recorder:
        recorder.record(tick(10))
    expected = [samples for samples in written if samples <= resumed_at] + [10]
    assert samples_of(run) == expected
    assert path.read_bytes().count(b"\n") == len(expected)
    assert path.read_bytes().endswith(b"\n")
    assert temporary_files(run) == []


@pytest.mark.parametrize(
    "garbage",
    [b"{\n", b"\0\0\0\0\n", b"\xff\xfe\xfd\n", b"not json\n", b"{}\n", b'{"samples": "many"}\n', b"\n"],
    ids=["half", "zeros", "bytes", "words", "no samples", "bad samples", "empty"],
)
def test_garbage_among_the_rows_is_dropped_and_the_run_goes_on(make_run: MakeRun, garbage: bytes) -> None:
    run = make_run()
    path = run.path / "metrics.jsonl"
    path.write_bytes(b'{"samples": 20, "loss/x": 0.1}\n{"samples": 40}\n' + garbage)
    with Recorder(run, samples=40) as recorder:
        recorder.record(tick(60))
    assert rows_of(run) == [{"samples": 20, "loss/x": 0.1}, {"samples": 40}, {"samples": 60}]
    assert path.read_bytes().count(b"\n") == 3


def test_whoever_was_cut_off_writes_no_row_any_more(make_run: MakeRun) -> None:
    run, checks = make_run(), count()

    def lost_at_the_third_look() -> None:
        if next(checks) >= 2:  # it still owned the run when it looked before the row of 40, and then was cut off
            raise FencedError("it is trained by another process")

    with Recorder(run, check=lost_at_the_third_look) as cut_off:
        cut_off.record(tick(20, x=1 / 3, y=1e-300))
        before = (run.path / "metrics.jsonl").read_bytes()
        with Recorder(run, samples=20) as recorder:
            assert (run.path / "metrics.jsonl").read_bytes() == before
            with pytest.raises(FencedError):
                cut_off.record(tick(40, x=9.0))
            recorder.record(tick(40, x=1.0))
            with pytest.raises(FencedError):
                cut_off.record(tick(60, x=9.0))
    assert rows_of(run)[1:] == [{"samples": 40, "loss/x": 1.0}]


@pytest.mark.parametrize(("samples", "redone"), [(0, 60), (20, 40), (60, 0), (80, 0)])
def test_it_says_how_much_is_done_again(make_run: MakeRun, samples: int, redone: int) -> None:
    run = make_run()
    (run.path / "metrics.jsonl").write_text("".join(f'{{"samples": {at}}}\n' for at in (20, 40, 60)))
    with Recorder(run, samples=samples) as recorder:
        assert recorder.redone == redone


# --- pictures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 7, 1), (6, 4, 3), (1, 1, 1)])
def test_a_picture_is_a_png_of_the_same_pixels(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    save_png(tmp_path / "new" / "x.png", picture)
    with Image.open(tmp_path / "new" / "x.png") as image:
        assert image.format == "PNG"
        assert image.mode == ("L" if shape[2] == 1 else "RGB")
        assert np.array_equal(np.asarray(image).reshape(shape), picture)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["x.png"]


@pytest.mark.parametrize(
    ("kind", "name", "size", "mode", "colour"),
    [
        ("autoencoder", "reconstructions", (8 * 30 - 2, 4 * 30 - 2), "L", False),
        ("gan", "samples", (8 * 30 - 2, 8 * 30 - 2), "L", False),
        ("gan", "samples", (8 * 34 - 2, 8 * 34 - 2), "RGB", True),
    ],
)
def test_a_run_leaves_pictures_that_can_be_looked_at(
    make_run: MakeRun, colour_data: Path, kind: str, name: str, size: tuple[int, int], mode: str, colour: bool
) -> None:
    run = make_run(kind, "report.images_every_samples=80", "duration_samples=200", data=colour_data if colour else None)
    execute(run, ALONE)
    assert sorted(file.name for file in (run.path / "images").iterdir()) == [
        f"{name}-{directory_name(samples)}.png" for samples in (80, 160, 200)
    ]
    for file in (run.path / "images").iterdir():
        with Image.open(file) as image:
            image.verify()
        with Image.open(file) as image:
            assert (image.format, image.size, image.mode) == ("PNG", size, mode)
    newest = newest_picture(run.path)
    assert newest is not None
    assert newest.name == f"{name}-{directory_name(200)}.png"


def test_the_newest_picture_is_that_of_the_last_sample(make_run: MakeRun) -> None:
    run = make_run()
    assert newest_picture(run.path) is None
    picture = np.zeros((2, 2, 1), np.uint8)
    for name, samples in (("samples", 900), ("reconstructions", 1000), ("samples", 20)):
        save_png(run.path / "images" / f"{name}-{directory_name(samples)}.png", picture)
    newest = newest_picture(run.path)
    assert newest is not None
    assert newest.name == "reconstructions-000000001000.png"


# --- carrying out a run -------------------------------------------------------------------------------------------


class SinkOf:
    """Keeps what it is shown."""

    def __init__(self, samples: int) -> None:
        self.start = samples
        self.seen: list[int] = []
        self.closed = False

    def write(self, tick: Tick) -> None:
        self.seen.append(tick.samples)

    def close(self) -> None:
        self.closed = True


def test_a_run_is_carried_out_and_told(make_run: MakeRun, newest: Newest) -> None:
    run = make_run("gan", "report.every_samples=60", "checkpoint.keep=2", "checkpoint.every_samples=50")
    sinks: list[SinkOf] = []
    told: list[tuple[int, int]] = []

    def make_sinks(samples: int) -> list[SinkOf]:
        sinks.append(SinkOf(samples))
        return sinks

    outcome = execute(
        run, ALONE, sinks=make_sinks, on_tick=lambda tick: told.append((tick.samples, samples_of(run)[-1]))
    )
    assert outcome == Outcome(samples=200, stopped=False)
    assert samples_of(run) == [60, 100, 120, 160, 180, 200]
    assert told == [(samples, samples) for samples in samples_of(run)]
    assert len(sinks) == 1
    assert sinks[0].start == 0
    assert sinks[0].seen == samples_of(run)
    assert sinks[0].closed
    assert [path.name for path in saved(run.checkpoints)] == [directory_name(200), directory_name(160)]
    assert newest(run).samples == 200


def test_a_stopped_run_says_so_and_goes_on(
    make_run: MakeRun, newest: Newest, differing: Differing, measures: Measures
) -> None:
    straight, run = make_run("gan"), make_run("gan")
    execute(straight, ALONE)
    asked = count(1)
    assert execute(run, ALONE, should_stop=lambda: next(asked) == 5) == Outcome(100, stopped=True)
    assert newest(run).samples == 100
    sink = SinkOf(-1)

    def make_sinks(samples: int) -> list[SinkOf]:
        sink.start = samples
        return [sink]

    execute(run, ALONE, sinks=make_sinks)
    assert sink.start == 100
    assert sink.seen == [120, 140, 160, 180, 200]
    assert differing(newest(run).tensors(), newest(straight).tensors()) == []
    assert [measures(row) for row in run.metrics()] == [measures(row) for row in straight.metrics()]


@pytest.mark.parametrize("killed_at", [40, 80, 140, 200])
@pytest.mark.parametrize("cut", ["", '{"samples": 1'])
def test_after_a_kill_no_row_is_repeated_or_missing(
    make_run: MakeRun,
    newest: Newest,
    differing: Differing,
    measures: Measures,
    killed_at: int,
    cut: str,
) -> None:
    straight, run = make_run("gan"), make_run("gan")
    execute(straight, ALONE)

    def kill(tick: Tick) -> None:
        if tick.samples == killed_at:
            raise Killed

    with pytest.raises(Killed):
        execute(run, ALONE, on_tick=kill)
    assert samples_of(run) == list(range(20, killed_at + 1, 20))
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(cut)
    execute(Run.open(run.path), ALONE)
    assert samples_of(run) == list(range(20, 201, 20))
    assert [measures(row) for row in run.metrics()] == [measures(row) for row in straight.metrics()]
    assert differing(newest(run).tensors(), newest(straight).tensors()) == []
    assert (run.path / "metrics.jsonl").read_bytes().count(b"\n") == 10


def test_a_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(
    make_run: MakeRun, newest: Newest, differing: Differing, measures: Measures
) -> None:
    run = make_run("autoencoder")
    execute(run, ALONE)
    # Clones: what is read from a checkpoint is a map of its file, which is about to be cut off.
    tensors = {name: tensor.clone() for name, tensor in newest(run).tensors().items()}
    rows = [measures(row) for row in run.metrics()]
    file = newest(run).path / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert execute(run, ALONE) == Outcome(200, False)
    assert differing(newest(run).tensors(), tensors) == []
    assert [measures(row) for row in run.metrics()] == rows


def test_damaged_checkpoints_never_crowd_out_the_good_ones(make_run: MakeRun, newest: Newest) -> None:
    run = make_run("autoencoder", "checkpoint.every_samples=60")
    execute(run, ALONE)
    for samples in (180, 200):
        (run.checkpoints / directory_name(samples) / "state.json").unlink()
    assert newest(run).samples == 120
    assert execute(run.resumed(["checkpoint.keep=1"]), ALONE, should_stop=lambda: True) == Outcome(140, stopped=True)
    assert newest(run).samples == 140


def test_a_finished_run_is_left_as_it_is(make_run: MakeRun) -> None:
    run = make_run()
    execute(run, ALONE)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert execute(run, ALONE) == Outcome(200, stopped=False)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
