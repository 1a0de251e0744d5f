"""Real Ray clusters: DDP workers killed by pid, stopped by a signal, resumed, and spread over two nodes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.processes import DEADLINE_SEC, descendants, finish, start, wait_until
from tests.ray_train.runs import DURATION, WORDS, assert_same_end, rows, workers_of

from shoal.checkpoint import newest


def stranger(driver: int) -> subprocess.Popen[str]:
    """Start a process without the token that tries to join the cluster of a driver."""
    (raylet,) = [title for title in descendants(driver).values() if b"raylet/raylet" in title.split(b"\0")[0]]
    (address,) = [word.partition(b"=")[2] for word in raylet.split(b"\0") if word.startswith(b"--gcs-address=")]
    return subprocess.Popen(
        [sys.executable, "-c", f"import ray; ray.init(address={address.decode()!r})"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
    )


def test_a_killed_worker_is_replaced_and_nothing_is_lost(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start("train", *WORDS, "--data", data, "--out", run, "--workers", "2")
    wait_until(lambda: newest(run / "checkpoints") is not None, process)
    victims = workers_of(process.pid)
    assert len(victims) == 2
    for victim in victims:  # they stand still while somebody else asks, who is kept out, not merely too late
        os.kill(victim, signal.SIGSTOP)
    outsider = stranger(process.pid)
    assert "InvalidAuthToken" in outsider.communicate(timeout=DEADLINE_SEC)[0]
    assert outsider.returncode != 0
    os.kill(victims[0], signal.SIGKILL)
    os.kill(victims[1], signal.SIGCONT)
    said = finish(process)
    assert "workers lost" in said
    failures = [json.loads(line) for line in (run / "failures.jsonl").read_text().splitlines()]
    assert len(failures) == 1
    assert_same_end(undisturbed, run)


def test_sigterm_saves_that_very_sample_and_resume_goes_on_with_as_many_workers(
    two_nodes: str, data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start("train", *WORDS, "--data", data, "--out", run, "--workers", "2", "--address", two_nodes)
    wait_until(lambda: len(rows(run)) > 3, process)
    process.send_signal(signal.SIGTERM)
    finish(process, code=128 + signal.SIGTERM)
    left = newest(run / "checkpoints")
    assert left is not None
    assert left.samples == rows(run)[-1]["samples"] < DURATION
    said = finish(start("train", "--resume", "--out", run, "--address", two_nodes))
    assert f"going on at sample {left.samples:,}" in said
    assert "2 worker(s)" in said
    assert_same_end(undisturbed, run)


def test_a_users_error_in_a_worker_is_neither_retried_nor_a_traceback(
    two_nodes: str, data: Path, tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(data, tmp_path / "damaged"))
    shard = bytearray((damaged / "shard-00000.arrow").read_bytes())
    shard[len(shard) // 2] ^= 1
    (damaged / "shard-00000.arrow").write_bytes(shard)
    words = ("--data", damaged, "--out", tmp_path / "run", "--workers", "2", "--address", two_nodes)
    said = finish(start("train", *WORDS, *words), code=2)
    assert "error: " in said
    assert "shard-00000.arrow" in said
    assert not (tmp_path / "run" / "failures.jsonl").exists()


def test_a_cluster_of_two_nodes_trains_together(two_nodes: str, data: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finish(start("train", *WORDS, "--data", data, "--out", run, "--workers", "2", "--address", two_nodes))
    assert_same_end(undisturbed, run)
    assert json.loads((run / "environment.json").read_text())["address"] == two_nodes
    assert not list(tmp_path.glob(".shoal-preflight*"))


def test_a_cluster_that_is_too_small_says_what_fits(two_nodes: str, data: Path, tmp_path: Path) -> None:
    words = ("--data", data, "--out", tmp_path / "run", "--workers", "3", "--address", two_nodes)
    said = finish(start("train", *WORDS, *words), code=2)
    assert "2 CPUs" in said
    assert "on 2 node(s), room for 2" in said
    assert not (tmp_path / "run").exists()


def test_nodes_of_another_version_are_named(
    two_nodes: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal.errors import ClusterError
    from shoal_ray import cluster, preflight

    with cluster.connected(two_nodes):
        nodes = cluster.alive_nodes()
        preflight.check_nodes(nodes, tmp_path, data)
        here = preflight.versions()
        monkeypatch.setattr(preflight, "versions", lambda: here | {"torch": "1.0"})
        with pytest.raises(ClusterError, match=r"torch .*, here 1\.0"):
            preflight.check_nodes(nodes, tmp_path, data)
        monkeypatch.setattr(preflight, "PROBE_TIMEOUT_SEC", 0)
        with pytest.raises(ClusterError, match="no answer within 0 s; it is very busy, or not well"):
            preflight.check_nodes(nodes, tmp_path, data)
    assert list(tmp_path.iterdir()) == []
