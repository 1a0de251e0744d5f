"""Jobs on a real cluster: submitted, watched, stopped, gone on with; refused; failed. And what is kept secret."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.processes import wait_until
from tests.submission.conftest import DEADLINE_SEC, Cluster, Said, wait_for
from tests.submission.line import Line

from shoal.checkpoint import newest
from shoal.run import read_rows
from shoal_ray.submission.api import JobsApi

REPO = Path(__file__).parents[2]
TINY = (
    "seed-autoencoder",
    "objective.name=paced",
    "nets.hidden=[8]",
    "nets.latent=3",
    "batch=10",
    "report.every_samples=100",
    "report.images_every_samples=0",
    "checkpoint.every_samples=100_000",
)
SECRET = "never-to-be-seen"

PLUGIN = """
import os
import sys
import time
from pathlib import Path
from typing import Literal

from shoal.objectives import Autoencoder
from shoal.objectives.autoencoder import AutoencoderConfig


class PacedConfig(AutoencoderConfig):
    name: Literal["paced"] = "paced"


class Paced(Autoencoder):
    Config = PacedConfig

    def loss(self, *arguments):
        time.sleep(float(os.environ.get("PACE_SEC", "0")))
        if witness := os.environ.get("WITNESS"):
            Path(witness).write_text(os.environ["MY_SECRET"] + " " + sys.modules["shoal"].__file__)
            raise RuntimeError("this code is broken")
        return super().loss(*arguments)
"""

Shoal = Callable[..., Said]
Background = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def background() -> Iterator[Background]:
    """Return ``background(*words, **environment)``: start the command line as a process, which ends with the tests."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str | Path, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "shoal_ray.cli", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | environment,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        if process.stdout is not None and not process.stdout.closed:
            process.communicate()


def end(process: subprocess.Popen[str], code: int) -> str:
    try:
        said = process.communicate(timeout=DEADLINE_SEC)[0]
    finally:
        process.kill()
    assert process.returncode == code, said
    return said


def listed(shoal: Shoal) -> dict[str, dict[str, object]]:
    said = shoal("jobs", "list", "--json")
    assert said.code == 0, said.error
    return {job["id"]: job for job in json.loads(said.out)}


def clocks(run: Path) -> list[int]:
    return [row["samples"] for row in read_rows(run / "metrics.jsonl")]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is no checkout of Shoal, which is installed where the jobs run."""
    path = tmp_path_factory.mktemp("tree")
    (path / "paced.py").write_text(PLUGIN)
    return path


@pytest.fixture(scope="module", autouse=True)
def broken(cluster: Cluster, data: Path, background: Background, tmp_path_factory: pytest.TempPathFactory) -> "Broken":
    """A job whose code raises, from a checkout; it runs beside the others."""
    path = tmp_path_factory.mktemp("broken")
    checkout = path / "checkout"
    checkout.mkdir()
    for name in ("src", "distributed"):
        (checkout / name).symlink_to(REPO / name)
    (checkout / "paced.py").write_text(PLUGIN)
    train = ["train", *TINY, "--plugin", "paced.py", "--data", data, "--out", path / "run", "--max-failures", "0"]
    secrets = ["--env", "MY_SECRET", "--env", f"WITNESS={path / 'witness'}"]
    process = background(
        *["submit", "--name", "broken", "--working-dir", checkout, *secrets, "--follow", "--", *train],
        RAY_API_SERVER_ADDRESS=cluster.address,
        RAY_AUTH_TOKEN=cluster.token,
        MY_SECRET=SECRET,
    )
    return Broken(process, path / "witness")


class Broken:
    def __init__(self, process: subprocess.Popen[str], witness: Path) -> None:
        self.process = process
        self.witness = witness


def test_a_job_is_left_stopped_and_gone_on_with(
    shoal: Shoal, background: Background, cluster: Cluster, data: Path, tree: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    submit = ["submit", "--working-dir", tree, "--env", "PACE_SEC=0.01"]
    common = ["train", *TINY, "--plugin", tree / "paced.py", "--data", data]
    train = [*common[:-3], "paced.py", "--data", data, "duration_samples=1e9", "--out", run]
    process = background(*submit, "--follow", "--name", "first", "--", *train)
    wait_until(lambda: bool(clocks(run)), process)

    refused = shoal(*submit, "--name", "first", "--", *train[:-1], tmp_path / "other")
    assert refused.code == 2
    assert "there is a job first already (running); give another --name" in refused.error
    refused = shoal(*submit, "--name", "second", "--", *train)
    assert refused.code == 2
    assert f"job first trains {run} now; give another --out" in refused.error

    process.send_signal(signal.SIGINT)
    said = end(process, 130)
    assert "first goes on without us" in said
    assert f"shoal submit --working-dir {tree} --env PACE_SEC=0.01 -- train --resume --out {run}" in said
    left_at = clocks(run)[-1]
    wait_for(lambda: clocks(run)[-1] > left_at)
    job = listed(shoal)["first"]
    assert (job["state"], job["run"], job["ended"]) == ("running", str(run), None)
    (worker,) = [node["node_id"] for node in cluster.nodes() if not node["is_head_node"]]
    assert JobsApi(cluster.address, cluster.token).job("first").node == worker  # a head may be started again

    stopped = shoal("jobs", "stop", "first", "--wait")
    assert stopped.code == 0, stopped.error
    found = newest(run / "checkpoints")
    assert found is not None
    assert found.samples == clocks(run)[-1]  # neither was due: it is the very sample at which it was told
    assert f"first: stopped at sample {found.samples:,}\n" in stopped.out
    marker = json.loads((run / "ended.json").read_text())
    assert (marker["how"], marker["samples"]) == ("stopped", found.samples)
    job = listed(shoal)["first"]
    assert (job["state"], job["samples"], job["ray_status"]) == ("stopped", found.samples, "STOPPED")
    assert "first has ended already: stopped" in shoal("jobs", "stop", "first").out

    # On to the end, over a line that breaks. The same without Ray and without a stop meanwhile.
    duration = found.samples + 3000
    line = Line(cluster.port)
    resume = ["train", "--resume", "--out", run, f"duration_samples={duration}"]
    process = background(*submit, "--address", f"http://127.0.0.1:{line.port}", "--follow", "--", *resume)
    straight = background(*common, f"duration_samples={duration}", "--out", tmp_path / "straight", "--local")
    wait_until(lambda: clocks(run)[-1] > found.samples, process)
    line.cut()
    line.mend()
    said = end(process, 0)
    assert f"going on at sample {found.samples:,}" in said
    (second,) = [job for job in listed(shoal).values() if job["run"] == str(run) and job["id"] != "first"]
    assert (second["state"], second["samples"]) == ("finished", duration)
    end(straight, 0)
    one, two = newest(run / "checkpoints"), newest(tmp_path / "straight" / "checkpoints")
    assert one is not None
    assert two is not None
    assert one.samples == two.samples == duration
    assert all(torch.equal(tensor, one.tensors()[name]) for name, tensor in two.tensors().items())
    assert clocks(run) == sorted(set(clocks(run)))

    # What was shown over the broken line is the log, once.
    log = shoal("jobs", "logs", str(second["id"])).out.splitlines()
    assert [text for text in said.splitlines() if text in set(log)] == log
    assert "the line to the cluster is there again" in said or line.connections > 1


def test_a_job_whose_code_raises_has_failed(broken: Broken, shoal: Shoal) -> None:
    said = end(broken.process, 2)
    assert "this code is broken" in said
    job = listed(shoal)["broken"]
    assert (job["state"], job["ray_status"]) == ("failed", "FAILED")


def test_secrets_reach_the_workers_and_are_shown_nowhere(broken: Broken, shoal: Shoal, cluster: Cluster) -> None:
    broken.process.wait(DEADLINE_SEC)
    secret, shoal_file = broken.witness.read_text().split()
    assert secret == SECRET
    assert "/_ray_pkg_" in shoal_file  # and the code that went along is what ran, not what is installed
    shown = [cluster.ask(f"/api/{path}").text for path in ("jobs/", "jobs/broken", "jobs/broken/logs")]
    shown += [
        cluster.ask(f"/api/v0/{what}?detail=true&limit=1000").text for what in ("actors", "workers", "runtime_envs")
    ]
    shown += [shoal("jobs", *words).out for words in (["list"], ["list", "--json"], ["logs", "broken"])]
    assert all("broken" in text or "WITNESS" in text for text in shown[:2])
    assert not any(SECRET in text for text in shown)
    logs = [file.read_bytes() for file in (cluster.logs / "logs").rglob("*") if file.is_file()]
    assert len(logs) > 10
    assert not any(SECRET.encode() in log for log in logs)


def test_what_the_cluster_cannot_train_is_refused_with_its_own_words(
    shoal: Shoal, data: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = listed(shoal)
    train = ["train", "seed-autoencoder", "--data", tmp_path / "none", "--out", tmp_path / "run"]
    refused = shoal("submit", "--working-dir", tree, "--", *train)
    assert refused.code == 2
    here = shoal(*train, "--local")
    assert here.code == 2
    assert refused.error.endswith(here.error)
    assert listed(shoal) == before
    assert not (tmp_path / "run").exists()
