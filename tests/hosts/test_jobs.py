"""``shoal submit`` and ``shoal jobs`` to a cluster of several hosts, typed on its head as through the tunnel."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.hosts.cluster import RayCluster
from tests.hosts.training import DEADLINE_SEC, Record

pytestmark = pytest.mark.hosts

NUM = 10
SHORT = (
    "seed-autoencoder",
    "nets.hidden=[8]",
    "nets.latent=3",
    "batch=64",
    "duration_samples=64_000",
    "report.every_samples=6400",
    "report.images_every_samples=0",
    "report.quality_every_samples=0",
    "checkpoint.every_samples=32_000",
)

RAISES = """
from typing import Literal

from shoal.objectives import Autoencoder
from shoal.objectives.autoencoder import AutoencoderConfig


class BrokenConfig(AutoencoderConfig):
    name: Literal["broken"] = "broken"


class Broken(Autoencoder):
    Config = BrokenConfig

    def loss(self, phase, batch, noise):
        raise ZeroDivisionError("a bug of one's own")
"""


class Terminal:
    """Where jobs are submitted from: the head, and a folder there with little in it."""

    def __init__(self, cluster: RayCluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        """Start ``shoal`` there."""
        command = ["python", "-m", "shoal_ray.cli", *words]
        return self._cluster.hosts.popen(self._cluster.head, command, cwd=self._folder)

    def shoal(self, *words: str | Path, code: int = 0) -> str:
        """Carry out ``shoal`` there; return what it said."""
        with self.start(*words) as process:
            said = process.communicate(timeout=DEADLINE_SEC)[0]
        assert process.returncode == code, said
        assert "Traceback" not in said
        return said

    def jobs(self) -> list[dict[str, Any]]:
        """Return all jobs as ``shoal jobs list`` tells them."""
        return list(json.loads(self.shoal("jobs", "list", "--all", "--json")))

    def ended(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Wait for the end of jobs; return what became of them."""
        deadline = time.monotonic() + 2 * DEADLINE_SEC
        while True:
            jobs = {job["id"]: job for job in self.jobs() if job["id"] in names}
            if len(jobs) == len(names) and all(job["ended"] for job in jobs.values()):
                return jobs
            assert time.monotonic() < deadline, jobs
            time.sleep(2)  # between two looks, each of which costs a second of a core


@pytest.fixture
def terminal(cluster: RayCluster, shared: Path, tmp_path: Path) -> Iterator[Terminal]:
    folder = shared / tmp_path.name
    folder.mkdir()
    (folder / "broken.py").write_text(RAISES)
    yield Terminal(cluster, folder)
    cluster.hosts.signal(cluster.head, b"shoal_ray.cli", signal.SIGKILL)  # what a test that failed left there


def test_ten_jobs_at_once_take_turns(terminal: Terminal, cluster: RayCluster, shared: Path, data: Path) -> None:
    runs = {f"ten-{number}": shared / f"ten-{number}" for number in range(NUM)}
    submitting = [
        terminal.start("submit", "--name", name, "--", "train", *SHORT, "--data", data, "--out", run)
        for name, run in runs.items()
    ]
    said = [process.communicate(timeout=NUM * DEADLINE_SEC / 4)[0] for process in submitting]  # all on two cores
    assert [process.returncode for process in submitting] == [0] * NUM, said
    jobs = terminal.ended(list(runs))
    assert [job["state"] for job in jobs.values()] == ["finished"] * NUM, jobs
    spans = []
    for run in map(Record, runs.values()):
        assert (run.ended()["how"], run.ended()["samples"]) == ("finished", 64_000)
        assert run.failures() == []
        spans.append((run.starts()[0]["time"], run.ended()["time"]))
    at_once = [sum(begin <= moment < end for begin, end in spans) for moment, _ in spans]
    assert max(at_once) <= len(cluster.workers)


def test_a_job_whose_code_raises_says_so_and_leaves_the_cluster_to_others(
    terminal: Terminal, cluster: RayCluster, shared: Path, data: Path
) -> None:
    words = (*SHORT, "objective.name=broken", "--plugin", "broken.py", "--max-failures", "1")
    said = terminal.start(
        "submit", "--follow", "--name", "broken", "--", "train", *words, "--data", data, "--out", shared / "broken"
    )
    text = said.communicate(timeout=DEADLINE_SEC)[0]
    assert said.returncode != 0
    assert "a bug of one's own" in text
    (job,) = terminal.ended(["broken"]).values()
    assert job["state"] == "failed"
    run = Record(shared / "broken")
    assert len(run.failures()) == 2
    assert run.whole() == []
    after = ("--data", data, "--out", shared / "after")
    terminal.shoal("submit", "--name", "after", "--follow", "--", "train", *SHORT, *after)
    assert Record(shared / "after").ended()["how"] == "finished"


def test_of_two_runs_with_one_name_the_second_is_refused(
    terminal: Terminal, cluster: RayCluster, shared: Path, data: Path
) -> None:
    words = ("--", "train", *SHORT, "--data", str(data), "--out", str(shared / "twin"))
    terminal.shoal("submit", "--name", "first", *words)
    assert "first" in terminal.shoal("submit", "--name", "second", *words, code=2)
    direct = ["python", "-m", "shoal_ray.cli", "train", *words[2:], "--address", cluster.address]
    deadline = time.monotonic() + DEADLINE_SEC
    while not (shared / "twin" / "config.yaml").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)  # between two looks
    done = cluster.hosts.run(cluster.client, direct, check=False)
    assert done.returncode == 2
    assert "already holds a run" in done.stdout
    (job,) = terminal.ended(["first"]).values()
    assert job["state"] == "finished"
    assert "already holds a run" in terminal.shoal("submit", "--name", "third", *words, code=2)
    assert [job["id"] for job in terminal.jobs() if job["run"] == str(shared / "twin")] == ["first"]
