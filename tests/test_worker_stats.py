"""Where the workers' time goes: told alike by all, on real gloo worlds with a slow worker; and the log of it."""

import json
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.data import DataSet, stream
from shoal.loop import Tick
from shoal.run import Run
from shoal.run_files import WORKERS
from shoal.worker_log import WorkerLog, read_worker_log
from shoal.worker_stats import WorkerStats, joined, rates_of_hosts, shares, straggler
from shoal_ray.tensorboard import figures_of_workers

SCENARIO = Path(__file__).parent / "ranks" / "worker_stats.py"


def worker(rank: int, *, sec: float = 10.0, data: float = 0.0, talk: float = 0.0, host: str = "a") -> WorkerStats:
    return WorkerStats(rank, host, 1000, sec, data, talk)


def tick(samples: int, *workers: WorkerStats) -> Tick:
    return Tick(samples=samples, scalars={}, images={}, save=None, workers=workers)


@pytest.fixture(scope="module")
def play(
    small_data: Path, tmp_path_factory: pytest.TempPathFactory, launch_world: Callable[..., list[str]]
) -> Callable[[int], tuple[Path, list[dict[str, Any]]]]:
    """Train in a world of a size, once; return its folder and what each rank told."""
    known: dict[int, tuple[Path, list[dict[str, Any]]]] = {}

    def run(size: int) -> tuple[Path, list[dict[str, Any]]]:
        if size not in known:
            out = tmp_path_factory.mktemp(f"stats{size}")
            launch_world(size, SCENARIO, small_data, out)
            known[size] = out, [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(size)]
        return known[size]

    return run


Play = Callable[[int], tuple[Path, list[dict[str, Any]]]]


@pytest.mark.parametrize("size", [2, 3])
def test_every_rank_tells_the_same_of_all_and_names_the_slow_one(size: int, play: Play) -> None:
    _, told = play(size)
    assert all(each["ticks"] == told[0]["ticks"] for each in told)
    for found in told[0]["ticks"]:
        workers = [WorkerStats.from_row(row) for row in found["workers"]]
        assert [one.rank for one in workers] == list(range(size))
        assert {one.host for one in workers} == {socket.gethostname()}
        assert sum(one.samples for one in workers) == 200
        slowest = min(workers, key=lambda one: one.samples_per_sec)
        assert found["scalars"]["speed/slowest_worker"] == slowest.rank
        for name, value in shares(workers).items():
            assert found["scalars"][name] == pytest.approx(value, abs=1e-4), name  # rows are rounded
    *others, slow = joined([[WorkerStats.from_row(row) for row in found["workers"]] for found in told[0]["ticks"]])
    assert slow.sec - slow.communication_sec > 20 * 0.1  # 20 steps of 0.1 s are its own, and no wait
    for one in others:
        assert 0.3 < one.communication_sec < one.sec
        assert one.samples_per_sec > slow.samples_per_sec


@pytest.mark.parametrize("size", [2, 3])
def test_taking_the_time_changes_no_gradient(size: int, play: Play) -> None:
    assert [each["same gradients"] for each in play(size)[1]] == [True] * size


def test_the_log_has_a_row_per_tick(play: Play) -> None:
    folder, told = play(2)
    rows = [json.loads(line) for line in (folder / "run" / WORKERS).read_text().splitlines()]
    assert [row["samples"] for row in rows] == [200, 400]
    assert [row["workers"] for row in rows] == [each["workers"] for each in told[0]["ticks"]]
    assert all("workers" not in row for row in Run.open(folder / "run").metrics())


def test_a_worker_that_waits_for_its_data_says_so(
    make_run: Callable[..., Run], finish: Callable[..., list[Tick]], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = DataSet.fetch

    def slow(*words: Any, **more: Any) -> Any:
        time.sleep(0.02)  # a slow disk
        return quick(*words, **more)

    monkeypatch.setattr(DataSet, "fetch", slow)
    monkeypatch.setattr(stream, "READ_BYTES", 1)  # a batch at a time
    for each in finish(make_run("autoencoder", "report.every_samples=200", "checkpoint.every_samples=0")):
        (alone,) = each.workers
        assert 0.1 < alone.data_wait_sec < alone.sec  # 10 batches
        assert alone.data_wait_share == each.scalars["speed/data_wait_share"]
        assert alone.communication_sec == 0
        assert "speed/communication_share" not in each.scalars


@given(st.lists(st.tuples(st.floats(0, 0.4), st.floats(0, 0.5)), min_size=2, max_size=9))
def test_shares_add_up(waits: list[tuple[float, float]]) -> None:
    found = shares([worker(rank, data=10 * data, talk=10 * talk) for rank, (data, talk) in enumerate(waits)])
    mean = sum(talk for _, talk in waits) / len(waits)
    assert found["speed/communication_share"] + found["speed/straggler_wait_share"] == pytest.approx(mean)
    assert 0 <= found["speed/communication_share"] <= mean + 1e-9
    assert found["speed/data_wait_share"] == pytest.approx(sum(data for data, _ in waits) / len(waits))


def test_a_straggler_is_who_needs_longer_for_itself_whatever_it_waits_for() -> None:
    slow_disk = [worker(0, talk=5.0), worker(1, data=5.0), worker(2, talk=5.0)]
    found = straggler(slow_disk)
    assert found is not None
    assert found[0].rank == 1
    assert found[1] == pytest.approx(0.5)
    assert straggler([worker(0, talk=1.0), worker(1)]) is None  # a tenth slower
    assert straggler([worker(0)]) is None


def test_only_the_newest_set_of_workers_is_joined() -> None:
    before = [worker(0, host="lost"), worker(1)]
    now = [worker(0, host="spare", talk=1.0), worker(1, data=2.0)]
    assert joined([before, now, now]) == [
        WorkerStats(0, "spare", 2000, 20.0, 0.0, 2.0),
        WorkerStats(1, "a", 2000, 20.0, 4.0, 0.0),
    ]
    assert joined([]) == []


def test_curves_are_drawn_per_worker_and_per_host() -> None:
    workers = [worker(0, talk=5.0), worker(1), worker(2, host="b", data=1.0)]
    assert rates_of_hosts(workers) == {"a": 300.0, "b": 100.0}
    found = figures_of_workers(workers)
    assert found["worker/0/samples_per_sec"] == 200
    assert found["worker/2/data_wait_share"] == pytest.approx(0.1)
    assert found["worker/0/communication_share"] == 0.5
    assert found["node/a/samples_per_sec"] == 300
    assert figures_of_workers(workers[:1]) == {}


def test_lost_steps_go_from_the_log_and_who_was_cut_off_writes_elsewhere(make_run: Callable[..., Run]) -> None:
    run = make_run()
    cut_off = WorkerLog(run, 0)
    for samples in (100, 200, 300):
        cut_off.write(tick(samples, worker(0)))
    with (run.path / WORKERS).open("a") as file:
        file.write('{"samples": 40')
    log = WorkerLog(run, 200)
    cut_off.write(tick(400, worker(0)))
    log.write(tick(300, worker(0, talk=1.0)))
    for each in (cut_off, log):
        each.close()
    assert [row["samples"] for row in map(json.loads, (run.path / WORKERS).read_text().splitlines())] == [100, 200, 300]
    assert read_worker_log(run.path)[-1] == [worker(0, talk=1.0)]


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_row_that_cannot_be_written_is_left_out(make_run: Callable[..., Run]) -> None:
    run = make_run()
    log = WorkerLog(run, 0)
    log.write(tick(100, worker(0)))
    for more in (20, 0):  # half a row, then none
        with files_of_at_most((run.path / WORKERS).stat().st_size + more):
            log.write(tick(200, worker(0)))
    log.write(tick(300, worker(0)))
    log.close()
    assert len(read_worker_log(run.path)) == 2
    assert len(read_worker_log(run.path / "nowhere")) == 0
