"""A cluster whose nodes come when a run waits for them: Ray's own autoscaler, with nodes that are processes here."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from tests.processes import descendants, finish, start, wait_until
from tests.ray_train.runs import WORDS, assert_same_end, rows, starts
from tests.submission.conftest import free_ports, wait_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
NODES = 2
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32}
COMMANDS = (
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
    "initialization_commands",
    *(f"{whose}setup_commands" for whose in ("", "head_", "worker_")),
    *(f"{whose}_start_ray_commands" for whose in ("head", "worker")),
)
"""That a file has to have for Ray, and none of which is carried out here."""


def limits() -> dict[str, float]:
    """Return what the head of the file for AWS tells of how far it grows, for so few and small nodes as are here."""
    aws = yaml.safe_load((ROOT / "distributed/shoal_ray/launch/cluster-aws.yaml").read_text())
    told = {name: 0 for name in aws["available_node_types"]["head"]["resources"] if name.startswith("shoal_node")}
    return {**told, "shoal_nodes": NODES, "shoal_node_CPU": 1}


@pytest.fixture
def growing(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the address of a head without CPUs, to which up to two nodes of one CPU come."""
    for name, value in TOKEN.items():
        monkeypatch.setenv(name, value)
    with TemporaryDirectory(prefix="shoal-", dir="/tmp") as root:  # a short path: sockets are in it
        gcs, dashboard, client, *agents = free_ports(6)
        address = f"127.0.0.1:{gcs}"
        of_one = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": NODES}
        config = {
            "cluster_name": "fake",
            "max_workers": NODES,
            "upscaling_speed": 8,
            "idle_timeout_minutes": 10,
            "provider": {
                "type": "external",
                "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
                "launch_multiple": True,
                "head_node_id": HEAD,
                "gcs_address": address,
            },
            "auth": {},
            "docker": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            **{key: [] for key in COMMANDS},
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 0, **limits()}, "node_config": {}, "max_workers": 0},
                "one": of_one,
            },
        }
        (Path(root) / "autoscaling.json").write_text(json.dumps(config))
        ports = zip(
            ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port"), agents, strict=True
        )
        words = [
            *("--head", "--block", "--num-cpus=0", f"--port={gcs}", f"--dashboard-port={dashboard}"),
            *(f"--temp-dir={root}", "--disable-usage-stats", f"--ray-client-server-port={client}"),
            *(f"--{name}={port}" for name, port in ports),
            *(f"--autoscaling-config={root}/autoscaling.json", f"--resources={json.dumps(limits())}"),
        ]
        with (Path(root) / "said").open("wb") as said:
            head = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", *words],
                env=os.environ
                | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "1"}
                | {"RAY_CLOUD_INSTANCE_ID": HEAD, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD},
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_for(lambda: head.poll() is not None or b"--block" in (Path(root) / "said").read_bytes())
            assert head.poll() is None, (Path(root) / "said").read_text()
            yield address
        finally:
            for pid in descendants(head.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            head.wait()


def test_a_run_makes_a_cluster_grow_from_nothing(growing: str, data: Path, undisturbed: Path, tmp_path: Path) -> None:
    words = ("--data", data, "--address", growing)
    refused = start("train", *WORDS, *words, "--out", tmp_path / "many", "--workers", "3")
    assert "room for 2" in finish(refused, code=2)

    run = tmp_path / "fixed"
    assert "waiting for workers" in finish(start("train", *WORDS, *words, "--out", run, "--workers", "2"))
    assert_same_end(undisturbed, run)


def test_an_elastic_run_asks_for_more_nodes_while_it_trains(growing: str, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("--data", data, "--out", run, "--address", growing)
    process = start("train", *WORDS, "duration_samples=100_000_000", *words, "--workers", "1-2")
    wait_until(lambda: bool(starts(run)) and starts(run)[-1]["workers"] == 2 and len(rows(run)) > 1, process)
    process.send_signal(signal.SIGTERM)
    finish(process, code=128 + signal.SIGTERM)
