"""What Prometheus finds at the metrics endpoint of a Ray node while a run trains there."""

import re
import signal
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.processes import finish, start, wait_until

from shoal.data.write import write_dataset

LINE = re.compile(r"^ray_(shoal_\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def node() -> Iterator[tuple[str, int]]:
    """Yield the address of a cluster of one node with two CPUs, and the port of its metrics."""
    from ray.cluster_utils import Cluster

    port = free_port()
    often = {"metrics_report_interval_ms": 2000}
    head = {"num_cpus": 2, "dashboard_port": None, "metrics_export_port": port, "_system_config": often}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster.address, port
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]  # ray's own


def scrape(port: int) -> dict[tuple[str, ...], float]:
    """Return every gauge of a run by its name, and its tags beside the run's."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    found = {}
    for name, said, value in LINE.findall(text):
        tags = dict(re.findall(r'(\w+)="([^"]*)"', said))
        if tags["run"] == "scraped":
            found[name, *(tags[tag] for tag in ("name", "rank", "host") if tag in tags)] = float(value)
    return found


def test_a_run_is_found_at_the_metrics_endpoint_of_its_node(node: tuple[str, int], tmp_path: Path) -> None:
    address, port = node
    images = np.random.default_rng(0).integers(0, 256, (64, 1, 8, 8), dtype=np.uint8)
    write_dataset(tmp_path / "data", {"train": [(images, None)]}, shape=(1, 8, 8), class_names=None, source="test")
    process = start(
        "train",
        *("seed-autoencoder", "nets.hidden=[8]", "nets.latent=3", "batch=16", "duration_samples=1_000_000_000"),
        *("report.every_samples=16_000", "report.images_every_samples=0", "report.quality_every_samples=0"),
        *("--data", tmp_path / "data", "--out", tmp_path / "scraped", "--workers", "2", "--address", address),
    )
    found: dict[tuple[str, ...], float] = {}
    here = socket.gethostname()
    wanted = {
        ("shoal_samples",),
        ("shoal_duration_samples",),
        ("shoal_restarts",),
        ("shoal_samples_redone",),
        ("shoal_metric", "loss/reconstruction"),
        ("shoal_metric", "speed/samples_per_sec"),
        *(
            (f"shoal_worker_{what}", rank, here)
            for what in ("samples_per_sec", "data_wait_share", "communication_share")
            for rank in "01"
        ),
    }

    def seen() -> bool:
        found.update(scrape(port))
        return wanted <= found.keys()

    try:
        wait_until(seen, process)
        process.send_signal(signal.SIGTERM)
        finish(process, code=128 + signal.SIGTERM)
    finally:
        process.kill()
    assert found["shoal_duration_samples",] == 1_000_000_000
    assert found["shoal_samples",] % 16 == 0
    assert found["shoal_restarts",] == found["shoal_samples_redone",] == 0
    assert 0 < found["shoal_metric", "loss/reconstruction"] < 1
    assert found["shoal_worker_samples_per_sec", "0", here] > 0
    assert 0 < found["shoal_worker_communication_share", "1", here] < 1
