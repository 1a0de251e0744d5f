"""A run whose disk fills up, vanishes or refuses for a while: nothing of what is learned is lost by it."""

import errno
import json
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import Tensor

from shoal import checkpoint, run_writer, storage_trouble
from shoal.checkpoint import Checkpoint, directory_name
from shoal.checkpoint_format import TENSORS
from shoal.errors import DataError, FencedError, StorageError
from shoal.execute import Outcome, execute
from shoal.loop import Tick
from shoal.run import Run
from shoal.run_files import read_ended, read_rows
from shoal.world import World
from shoal_ray.tensorboard import TensorBoardSink

MakeRun = Callable[..., Run]
Newest = Callable[[Run], Checkpoint]
Differing = Callable[..., list[str]]

ALONE = World.local("cpu")
OFTEN = ("checkpoint.every_samples=20", "report.images_every_samples=40")


@pytest.fixture
def straight(make_run: MakeRun, newest: Newest) -> Mapping[str, Tensor]:
    """Return the tensors of an undisturbed run."""
    run = make_run("autoencoder")
    execute(run, ALONE)
    return newest(run).tensors()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait at the end of a run, nor for what passes before it is left."""
    monkeypatch.setattr(storage_trouble, "PATIENCE_AT_END_SEC", 0.0)
    monkeypatch.setattr(storage_trouble, "LEAVING_SEC", 0.0)
    monkeypatch.setattr(storage_trouble, "RETRY_SEC", 0.01)


def samples_of(run: Run) -> list[int]:
    return [row["samples"] for row in run.metrics()]


def refuse_half_written(run: Run) -> None:
    for thread in threading.enumerate():
        if thread.name == "checkpoint":  # of a run that was left without waiting for it
            thread.join(60)
    assert [path for path in run.path.rglob("*") if path.name.endswith(".tmp")] == []
    for path in checkpoint.saved(run.checkpoints):
        checkpoint.read(path)
    for path in run.path.rglob("*.png"):
        with Image.open(path) as image:
            image.verify()
    if (run.path / "metrics.jsonl").exists():
        for line in (run.path / "metrics.jsonl").read_text().splitlines():
            json.loads(line)


@dataclass
class Between:
    """Calls ``begin`` at one sample and ``end`` at another one, after their ticks were recorded."""

    begin_at: int
    end_at: int
    begin: Callable[[], object]
    end: Callable[[], object]
    seen: list[int] = field(default_factory=list)

    def __call__(self, tick: Tick) -> None:
        self.seen.append(tick.samples)
        if tick.samples == self.begin_at:
            self.begin()
        if tick.samples == self.end_at:
            self.end()


# --- trouble that passes ------------------------------------------------------------------------------------------


@pytest.fixture
def small_run(make_run: MakeRun, small_disk: Path) -> Run:
    """Return a run on a real file system with room for 4 MB."""
    made = make_run("autoencoder", *OFTEN)
    return Run.create(small_disk / "run", made.config, made.data)


def test_a_disk_that_is_full_for_a_while_costs_a_warning_and_some_checkpoints(
    small_run: Run, newest: Newest, differing: Differing, straight: Mapping[str, Tensor]
) -> None:
    run, told = small_run, list[str]()
    ballast = run.path.parent / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"x" * 4096)

    kept: list[list[int]] = []

    def empty() -> None:
        kept.append([checkpoint.read(path).samples for path in checkpoint.saved(run.checkpoints)])
        ballast.unlink()

    between = Between(60, 140, fill, empty)
    outcome = execute(run, ALONE, on_tick=between, on_trouble=told.append, sinks=lambda at: [TensorBoardSink(run, at)])
    assert outcome == Outcome(200, stopped=False)
    assert ["No space left" in text for text in told] == [True, False]
    assert "can be written again" in told[1]
    assert kept[0]  # whole ones, all through it
    assert max(kept[0]) <= 60
    assert samples_of(run) == list(range(20, 201, 20))
    assert sum(row.get("checkpoint/failed", 0) for row in run.metrics()) >= 1
    assert [checkpoint.read(path).samples for path in checkpoint.saved(run.checkpoints)] == [200, 180, 160]
    assert differing(newest(run).tensors(), straight) == []
    assert read_ended(run.path)["how"] == "finished"
    assert steps_in_tensorboard(run) == list(range(20, 201, 20))
    refuse_half_written(run)


def steps_in_tensorboard(run: Run) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [event.step for event in events.Scalars("loss/reconstruction")]


def test_a_run_whose_folder_vanishes_and_comes_back_goes_on_as_if_it_had_not(
    make_run: MakeRun, newest: Newest, differing: Differing, straight: Mapping[str, Tensor]
) -> None:
    run, told = make_run("autoencoder", *OFTEN), list[str]()
    elsewhere = run.path.with_name("elsewhere")

    def come_back() -> None:
        assert not run.path.exists()  # nothing is made in an empty mount point
        elsewhere.rename(run.path)

    between = Between(60, 140, lambda: run.path.rename(elsewhere), come_back)
    execute(run, ALONE, on_tick=between, on_trouble=told.append)
    assert between.seen == samples_of(run) == list(range(20, 201, 20))
    assert ["No such file" in text for text in told] == [True, False]
    assert differing(newest(run).tensors(), straight) == []
    refuse_half_written(run)


@pytest.mark.parametrize("code", sorted(storage_trouble.PASSES))
def test_whatever_the_disk_refuses_with_for_a_while(
    make_run: MakeRun,
    newest: Newest,
    differing: Differing,
    straight: Mapping[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    run, told = make_run("autoencoder", *OFTEN), list[str]()
    sync = os.fsync

    def refuse(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    between = Between(
        40, 120, lambda: monkeypatch.setattr(os, "fsync", refuse), lambda: monkeypatch.setattr(os, "fsync", sync)
    )
    execute(run, ALONE, on_tick=between, on_trouble=told.append)
    assert samples_of(run) == list(range(20, 201, 20))
    assert len(told) == 2
    assert os.strerror(code) in told[0]
    assert differing(newest(run).tensors(), straight) == []
    refuse_half_written(run)


class FullDisk:
    """Lets ``room`` calls of fsync through, then ``refused`` none."""

    def __init__(self, room: int, refused: int = 10**9) -> None:
        self.calls = 0
        self._let_through = range(room), range(room + refused, 10**9)
        self._sync = os.fsync
        self._lock = threading.Lock()

    def __call__(self, handle: int) -> None:
        with self._lock:
            call, self.calls = self.calls, self.calls + 1
        if not any(call in calls for calls in self._let_through):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._sync(handle)


def full_run(make_run: MakeRun) -> Run:
    return make_run(
        "autoencoder", "duration_samples=80", "checkpoint.every_samples=40", "report.images_every_samples=40"
    )


@pytest.fixture
def short(make_run: MakeRun, newest: Newest) -> Mapping[str, Tensor]:
    run = full_run(make_run)
    execute(run, ALONE)
    return newest(run).tensors()


@pytest.fixture
def calls(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how often a run calls fsync."""
    counted, run = FullDisk(10**9), full_run(make_run)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", counted)
        execute(run, ALONE)
    assert counted.calls > 20
    return counted.calls


@pytest.mark.usefixtures("impatient")
def test_wherever_the_disk_fills_up_for_good_nothing_is_half_written_and_the_run_goes_on_later(
    make_run: MakeRun,
    newest: Newest,
    differing: Differing,
    short: Mapping[str, Tensor],
    calls: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for room in range(calls):
        run = full_run(make_run)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", FullDisk(room))
            if room < calls - LAST_CALLS:
                with pytest.raises(StorageError, match="No space left on device; make room"):
                    execute(run, ALONE, on_trouble=lambda text: None)
            else:
                execute(run, ALONE, on_trouble=lambda text: None)
        refuse_half_written(run)
        assert execute(run, ALONE) == Outcome(80, stopped=False)
        refuse_half_written(run)
        assert samples_of(run) == [20, 40, 60, 80]
        assert differing(newest(run).tensors(), short) == []
        assert read_ended(run.path)["how"] == "finished"


FIRST_CALLS = 8
"""Of a run: for its claim, metrics.jsonl and starts.jsonl. Until then, a disk that is full keeps it from starting."""
LAST_CALLS = 2
"""For ended.json, without which a run is as good."""


def test_wherever_the_disk_is_full_for_a_moment_the_run_does_not_end(
    make_run: MakeRun,
    newest: Newest,
    differing: Differing,
    short: Mapping[str, Tensor],
    calls: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage_trouble, "RETRY_SEC", 0.01)
    for room in range(FIRST_CALLS, calls - LAST_CALLS):
        run, told = full_run(make_run), list[str]()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", FullDisk(room, refused=2))
            execute(run, ALONE, on_trouble=told.append)
        assert len(told) in (1, 2)  # at the very end there may be nothing left that could be written again
        assert samples_of(run) == [20, 40, 60, 80]
        assert differing(newest(run).tensors(), short) == []
        refuse_half_written(run)


# --- trouble that does not pass -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
def test_a_run_that_cannot_be_kept_for_too_long_ends(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("autoencoder", *OFTEN, "duration_samples=1e6")
    monkeypatch.setattr(storage_trouble, "PATIENCE_SEC", 0.2)

    def refuse(handle: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def begin() -> None:
        monkeypatch.setattr(os, "fsync", refuse)

    between = Between(60, 0, begin, begin)
    with pytest.raises(StorageError, match=r"Read-only file system; make room or give another --out. --resume goes on"):
        execute(run, ALONE, on_tick=between, on_trouble=lambda text: None)
    assert between.seen[-1] < 1e6
    assert 20 <= checkpoint.read(checkpoint.saved(run.checkpoints)[0]).samples <= 60
    refuse_half_written(run)


@pytest.mark.usefixtures("impatient")
def test_a_disk_that_fills_up_under_the_tensors_leaves_the_checkpoint_before(
    make_run: MakeRun,
    newest: Newest,
    differing: Differing,
    short: Mapping[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_bytes, large = Path.write_bytes, []

    def full_the_second_time(self: Path, data: bytes) -> int:
        large.append(self)
        if len(large) < 2:
            return write_bytes(self, data)
        write_bytes(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = full_run(make_run)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_the_second_time)
        with pytest.raises(StorageError, match="No space left on device"):
            execute(run, ALONE, on_trouble=lambda text: None)
    assert [path.name for path in large][:2] == [TENSORS] * 2
    refuse_half_written(run)
    assert newest(run).samples == 40
    execute(run, ALONE)
    assert differing(newest(run).tensors(), short) == []


def test_a_disk_that_is_full_before_the_first_step_is_a_storage_error(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = full_run(make_run)
    (run.path / "metrics.jsonl").write_text('{"samples": 20')  # a row that a kill cut off, to be cleared away
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", FullDisk(0))
        with pytest.raises(StorageError, match="No space left on device"):
            execute(run, ALONE)
    assert (run.path / "metrics.jsonl").read_text() == '{"samples": 20'


def test_other_trouble_with_files_keeps_its_traceback(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(handle: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    run = full_run(make_run)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            execute(run, ALONE)
    assert not isinstance(caught.value, StorageError)


class FullSink:
    """Shows ticks somewhere that has no room for them after sample 40."""

    def write(self, tick: Tick) -> None:
        if tick.samples > 40:
            raise OSError(errno.EDQUOT, "Disk quota exceeded", "/runs/tensorboard")

    def close(self) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded", "/runs/tensorboard")


def test_what_only_shows_a_run_never_ends_it(
    make_run: MakeRun, newest: Newest, differing: Differing, straight: Mapping[str, Tensor]
) -> None:
    run, told = make_run("autoencoder"), list[str]()
    execute(run, ALONE, sinks=lambda samples: [FullSink()], on_trouble=told.append)
    assert ["cannot write /runs/tensorboard: Disk quota exceeded" in text for text in told] == [True]
    assert differing(newest(run).tensors(), straight) == []


# --- beside the training ------------------------------------------------------------------------------------------


class SlowDisk:
    """Holds back whoever begins to write a checkpoint until he is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.held = threading.Event()
        self._mkdir = os.mkdir

    def __call__(self, *arguments: Any) -> None:
        if threading.current_thread().name == "checkpoint":
            self.held.set()
            assert self.go.wait(60)
        self._mkdir(*arguments)


def test_training_goes_on_while_a_checkpoint_is_written_and_the_state_in_it_is_that_of_its_sample(
    make_run: MakeRun, newest: Newest, differing: Differing, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, stopped = make_run("autoencoder"), make_run("autoencoder", "duration_samples=80")
    execute(stopped, ALONE)
    disk = SlowDisk()
    monkeypatch.setattr(os, "mkdir", disk)
    seen: dict[int, list[int]] = {}

    def look(tick: Tick) -> None:
        seen[tick.samples] = [checkpoint.read(path).samples for path in checkpoint.saved(run.checkpoints)]
        if tick.samples == 140:
            assert disk.held.is_set()
            disk.go.set()

    execute(run, ALONE, on_tick=look)
    assert [seen[at] for at in (80, 100, 120, 140)] == [[]] * 4  # it trained for 60 samples meanwhile
    found = checkpoint.read(run.checkpoints / directory_name(80))
    assert differing(found.tensors(), newest(stopped).tensors()) == []
    assert found.stream == newest(stopped).stream
    assert newest(run).samples == 200


def test_the_next_checkpoint_waits_for_the_one_before_and_says_for_how_long(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, disk = make_run("autoencoder", "checkpoint.every_samples=40"), SlowDisk()
    monkeypatch.setattr(os, "mkdir", disk)
    asked = iter(range(1000))

    def should_stop() -> bool:
        if next(asked) == 3:  # in the step to sample 80, where the second one is due
            threading.Timer(0.3, disk.go.set).start()
        return False

    execute(run, ALONE, should_stop=should_stop)
    waited = {row["samples"]: row.get("checkpoint/wait_sec", 0.0) for row in run.metrics()}
    assert waited[80] > 0.2
    assert waited[20] == waited[40] == 0.0
    assert [checkpoint.read(path).samples for path in checkpoint.saved(run.checkpoints)] == [200, 160, 120]


def test_a_disk_that_never_answers_does_not_hold_up_training_for_ever(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, disk = make_run("autoencoder", "checkpoint.every_samples=40"), SlowDisk()
    monkeypatch.setattr(os, "mkdir", disk)
    monkeypatch.setattr("shoal.checkpoint_writer.LONGEST_WAIT_SEC", 0.01)
    execute(run, ALONE, on_tick=lambda tick: disk.go.set() if tick.samples == 180 else None)
    assert sum(row.get("checkpoint/failed", 0) for row in run.metrics()) == 2  # of 80 and 120; that of 160 is not told
    assert [checkpoint.read(path).samples for path in checkpoint.saved(run.checkpoints)] == [200, 40]


def fail_in_the_third_step() -> Callable[[], bool]:
    """Return what is asked at every step: a user's error comes up in the third."""
    asked = count(1)

    def should_stop() -> bool:
        if next(asked) == 3:
            raise DataError("the dog ate it")
        return False

    return should_stop


@pytest.fixture
def refuse_rows(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what makes the disk refuse rows from then on, and nothing else."""
    sync = os.fsync

    def refuse(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink().name == "metrics.jsonl":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(handle)

    return lambda: monkeypatch.setattr(os, "fsync", refuse)


def test_rows_that_are_refused_hold_back_no_checkpoint_for_long(
    make_run: MakeRun, refuse_rows: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("autoencoder", "checkpoint.every_samples=40")
    monkeypatch.setattr(run_writer, "ROWS_FIRST_SEC", 0.0)
    monkeypatch.setattr(storage_trouble, "PATIENCE_AT_END_SEC", 0.0)
    monkeypatch.setattr(storage_trouble, "LEAVING_SEC", 2.0)
    between = Between(20, 0, refuse_rows, list)
    with pytest.raises(StorageError, match=r"metrics.jsonl: Input/output error"):
        execute(run, ALONE, on_tick=between, on_trouble=lambda text: None)
    assert samples_of(run)[0] == 20
    assert 200 in [checkpoint.read(path).samples for path in checkpoint.saved(run.checkpoints)]
    assert len(checkpoint.saved(run.checkpoints)) > 1


def test_a_run_that_fails_keeps_its_last_state_though_its_rows_cannot_be_written(
    make_run: MakeRun, refuse_rows: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("autoencoder")
    monkeypatch.setattr(storage_trouble, "LEAVING_SEC", 0.0)
    between = Between(20, 0, refuse_rows, list)
    with pytest.raises(DataError, match="the dog ate it"):
        execute(run, ALONE, should_stop=fail_in_the_third_step(), on_tick=between, on_trouble=lambda text: None)
    refuse_half_written(run)
    assert [checkpoint.read(path).samples for path in checkpoint.saved(run.checkpoints)] == [60]


def test_a_run_that_fails_while_a_checkpoint_is_written_keeps_its_last_state(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, disk, ended = make_run("autoencoder", "checkpoint.every_samples=40"), SlowDisk(), list[int]()
    monkeypatch.setattr(os, "mkdir", disk)
    monkeypatch.setattr("shoal.checkpoint_writer.LONGEST_WAIT_SEC", 0.01)

    def progress() -> None:
        if ended:  # it is alive to whoever watches, and the disk answers
            disk.go.set()

    with pytest.raises(DataError, match="the dog ate it"):
        execute(
            run,
            ALONE,
            should_stop=fail_in_the_third_step(),
            on_tick=lambda tick: ended.append(tick.samples) if tick.last else None,
            on_progress=progress,
        )
    assert [checkpoint.read(path).samples for path in checkpoint.saved(run.checkpoints)] == [60, 40]
    assert read_ended(run.path)["why"] == "the dog ate it"


# --- how it began and ended ---------------------------------------------------------------------------------------


def test_a_run_tells_of_its_starts_and_of_its_end(make_run: MakeRun) -> None:
    run = make_run("autoencoder", "duration_samples=400")
    asked = iter(range(1000))
    execute(run, ALONE, should_stop=lambda: next(asked) == 4)
    assert {key: read_ended(run.path)[key] for key in ("how", "samples", "why", "epoch")} == {
        "how": "stopped",
        "samples": 100,
        "why": "",
        "epoch": 1,
    }

    def lose(tick: Tick) -> None:
        assert read_ended(run.path) == {}
        if tick.samples == 220:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(run, ALONE, on_tick=lose)
    assert read_ended(run.path) == {}

    def fail() -> bool:
        raise DataError("the dog ate it")

    with pytest.raises(DataError):
        execute(run, ALONE, should_stop=fail)
    assert read_ended(run.path)["how"] == "failed"
    assert read_ended(run.path)["why"] == "the dog ate it"
    execute(run, ALONE)
    assert (read_ended(run.path)["how"], read_ended(run.path)["samples"]) == ("finished", 400)
    starts = read_rows(run.path / "starts.jsonl")
    assert [(row["epoch"], row["samples"], row["redone"]) for row in starts] == [
        (1, 0, 0),
        (2, 100, 0),
        (3, 160, 60),
        (4, 180, 0),
    ]
    assert {row["workers"] for row in starts} == {1}
    assert [row["time"] for row in starts] == sorted(row["time"] for row in starts)


def test_two_processes_that_train_one_run_the_later_one_has_it(
    make_run: MakeRun, newest: Newest, differing: Differing, straight: Mapping[str, Tensor]
) -> None:
    run, second = make_run("autoencoder", "checkpoint.every_samples=40"), list[dict[str, Any]]()

    def start_another(tick: Tick) -> None:
        if tick.samples == 100 and not second:
            second.append({})
            execute(Run.open(run.path), ALONE)

    with pytest.raises(FencedError, match=r"is trained by another process .* this one leaves it alone"):
        execute(run, ALONE, on_tick=start_another)
    assert samples_of(run) == list(range(20, 201, 20))
    assert read_ended(run.path)["epoch"] == 2
    assert [path.name for path in checkpoint.saved(run.checkpoints)] == [
        directory_name(samples, 2) for samples in (200, 160, 120)
    ]
    assert differing(newest(run).tensors(), straight) == []


# --- the best one -------------------------------------------------------------------------------------------------


def test_the_best_measured_checkpoint_is_kept_however_old_it_is(make_run: MakeRun) -> None:
    run = make_run(
        "autoencoder",
        "checkpoint.every_samples=80",
        "checkpoint.keep=1",
        "checkpoint.keep_best=quality/mse",
        "report.quality_every_samples=40",
        "optim.lr=0.02",
        "optim.schedule=constant",
    )
    execute(run, ALONE)
    measured = {row["samples"]: row["quality/mse"] for row in run.metrics() if "quality/mse" in row}
    assert sorted(measured) == [40, 80, 120, 160, 200]
    best = min(measured, key=measured.__getitem__)
    assert {checkpoint.read(path).samples for path in checkpoint.saved(run.checkpoints)} == {best, 200}
    found = checkpoint.best_of(checkpoint.saved(run.checkpoints), "quality/mse")
    assert found is not None
    assert checkpoint.read(found).notes["measured"]["quality/mse"] == measured[best]


def write_measured(folder: Path, samples: int, **measured: float) -> None:
    checkpoint.write(
        folder / directory_name(samples),
        {},
        samples=samples,
        batches=0,
        shape=(1, 8, 8),
        stream={},
        config={},
        notes={"measured": measured} if measured else {},
    )


@pytest.mark.parametrize(
    ("metric", "best"), [("quality/mse", 100), ("quality/psnr", 300), ("fd", 400), ("fid", None), (None, None)]
)
def test_which_one_is_the_best(tmp_path: Path, metric: str | None, best: int | None) -> None:
    write_measured(tmp_path, 100, **{"quality/mse": 0.1, "quality/psnr": 10.0, "fd/cnn:old": 1.0})
    write_measured(tmp_path, 200, **{"quality/mse": 0.2, "quality/psnr": 30.0, "fd/cnn:old": 0.5})
    write_measured(tmp_path, 300, **{"quality/mse": 0.1, "quality/psnr": 40.0, "fd/cnn:new": 9.0})
    write_measured(tmp_path, 400, **{"quality/mse": 0.3, "quality/psnr": 20.0, "fd/cnn:new": 8.0})
    write_measured(tmp_path, 500)
    found = checkpoint.best_of(checkpoint.saved(tmp_path), metric)
    assert (found and checkpoint.read(found).samples) == best
    checkpoint.prune(tmp_path, 2, now=500, best_by=metric)
    kept = {500, 400} | ({best} if best else set())
    assert {checkpoint.read(path).samples for path in checkpoint.saved(tmp_path)} == kept
