"""What runs on a cluster live through: workers that hang, nodes that come and go, killed drivers, no room yet."""

import gc
import json
import os
import select
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from tests.processes import descendants, finish, start, wait_until
from tests.ray_train.runs import WORDS, assert_same_end, nurseries_of, rows, starts, workers_of, workers_on

from shoal.checkpoint import newest


@pytest.fixture
def one_node() -> Iterator[Cluster]:
    """Yield a cluster of one node with a CPU, to which others may be added."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "dashboard_port": None,  # any that is free: with a port of its own, taken, Ray leaves a socket open
            "_system_config": {
                "health_check_initial_delay_ms": 1000,
                "health_check_period_ms": 500,
                "health_check_timeout_ms": 1000,
                "health_check_failure_threshold": 3,
            },
        },
    )
    try:
        yield cluster
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]  # ray's own
        del cluster
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it leaves sockets of ports that it chose
            gc.collect()


def raylet_of(node: object) -> int:
    """Return the process of a node of a test's cluster."""
    ((info,),) = (node.all_processes["raylet"],)  # type: ignore[attr-defined]
    return int(info.process.pid)


def test_a_worker_that_hangs_is_replaced_and_really_gone(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start("train", *WORDS, "--data", data, "--out", run, "--workers", "2", "--hang-timeout", "4")
    wait_until(lambda: newest(run / "checkpoints") is not None, process)
    victim = workers_of(process.pid)[0]
    watch = os.pidfd_open(victim)
    os.kill(victim, signal.SIGSTOP)
    said = finish(process)
    assert select.select([watch], [], [], 0)[0] == [watch]
    os.close(watch)
    assert "workers lost" in said
    (lost,) = [json.loads(line) for line in (run / "failures.jsonl").read_text().splitlines()]
    assert lost["attempt"] == 1
    assert lost["workers"]
    assert [start["epoch"] for start in starts(run)] == [1, 2]
    assert_same_end(undisturbed, run)


def test_a_driver_that_is_killed_leaves_room_for_the_next_one_at_once(
    two_nodes: str, data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ("--data", data, "--out", run, "--workers", "2", "--address", two_nodes)
    process = start("train", *WORDS, *words)
    wait_until(lambda: newest(run / "checkpoints") is not None, process)
    process.kill()
    process.communicate()
    finish(start("train", "--resume", "--out", run, "--address", two_nodes))
    assert_same_end(undisturbed, run)


def test_runs_wait_for_each_other_and_all_come_to_their_end(
    two_nodes: str, data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    runs = [tmp_path / name for name in ("one", "two")]
    words = (*WORDS, "--data", data, "--workers", "2", "--address", two_nodes)
    processes = [start("train", *words, "--out", run) for run in runs]
    said = [finish(process) for process in processes]
    assert sum("waiting for workers: asked for 2 worker(s) of 1 CPU; free now: " in text for text in said) == 1
    for run in runs:
        assert_same_end(undisturbed, run)
        assert len(starts(run)) == 1


def test_what_waits_for_a_place_can_be_stopped(two_nodes: str, data: Path, tmp_path: Path) -> None:
    words = (*WORDS, "--data", data, "--workers", "2", "--address", two_nodes)
    first = start("train", *words, "duration_samples=100_000_000", "--out", tmp_path / "one")
    wait_until(lambda: len(rows(tmp_path / "one")) > 1, first)
    again = start("train", "--resume", "--out", tmp_path / "one", "--address", two_nodes)
    assert "is being trained by another process" in finish(again, code=2)
    waiting = start("train", *words, "--out", tmp_path / "two")
    wait_until((tmp_path / "two" / ".lock").exists, waiting)
    waiting.send_signal(signal.SIGTERM)
    assert "stopped while waiting for workers; --resume goes on" in finish(waiting, code=128 + signal.SIGTERM)
    assert not starts(tmp_path / "two")
    first.send_signal(signal.SIGTERM)
    finish(first, code=128 + signal.SIGTERM)


def test_workers_lost_too_often_end_the_run(two_nodes: str, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("--data", data, "--out", run, "--address", two_nodes, "--max-failures", "0")
    process = start("train", *WORDS, "duration_samples=100_000_000", *words)
    wait_until(lambda: len(rows(run)) > 1, process)
    for pid in workers_at(two_nodes):
        os.kill(pid, signal.SIGKILL)
    said = finish(process, code=2)
    assert "workers were lost 1 time(s), and --max-failures is 0" in said
    assert "--resume goes on" in said


def workers_at(address: str) -> list[int]:
    """Return the DDP workers of a cluster that this very process has started."""
    raylets = [
        pid
        for pid, title in descendants(os.getpid()).items()
        if b"raylet/raylet" in title.split(b"\0")[0] and f"--gcs-address={address}".encode() in title.split(b"\0")
    ]
    return sorted(workers_on(raylets))


def test_an_elastic_run_takes_what_nodes_there_are(one_node: Cluster, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("--data", data, "--out", run, "--workers", "1-2", "--address", one_node.address, "--max-failures", "1")
    process = start("train", *WORDS, "duration_samples=100_000_000", *words)
    wait_until(lambda: len(rows(run)) > 1, process)
    node = one_node.add_node(num_cpus=1)
    wait_until(lambda: len(starts(run)) == 2 and rows(run)[-1]["samples"] > starts(run)[1]["samples"], process)
    raylets = {raylet_of(one_node.head_node), raylet_of(node)}
    assert set(workers_on(raylets).values()) == raylets
    os.kill(raylet_of(node), signal.SIGKILL)
    wait_until(lambda: len(starts(run)) == 3 and rows(run)[-1]["samples"] > starts(run)[2]["samples"], process)
    assert len(nurseries_of(raylet_of(one_node.head_node))) == 1
    process.send_signal(signal.SIGTERM)
    said = finish(process, code=128 + signal.SIGTERM)
    assert [start["workers"] for start in starts(run)] == [1, 2, 1]
    assert starts(run)[1]["redone"] == 0  # it was asked to stop, and did so with a checkpoint
    assert "room for 2 workers instead of 1" in said
    clock = [row["samples"] for row in rows(run)]
    assert clock == sorted(set(clock))
    facts = json.loads((run / "environment.json").read_text())
    assert (facts["min_workers"], facts["workers"]) == (1, 2)
