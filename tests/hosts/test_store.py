"""A run in an object store that refuses it."""

from pathlib import Path

import pytest
from tests.hosts.cluster import RayCluster
from tests.hosts.store import Store
from tests.hosts.training import KINDS
from tests.storage.faulty import Fault

pytestmark = pytest.mark.hosts

DENIED = b"<Error><Code>InvalidAccessKeyId</Code><Message>no such key</Message></Error>"


def test_wrong_credentials_are_told_before_anything_starts(cluster: RayCluster, store: Store, data: Path) -> None:
    store.endpoint.faults.append(Fault(1_000_000, status=403, body=DENIED))
    words: list[str | Path] = [
        *KINDS["autoencoder"],
        "--data",
        data,
        "--workers",
        "2",
        "--out",
        store.uri("denied/run"),
    ]
    train = ["python", "-m", "shoal_ray.cli", "train", *words, "--address", cluster.address]
    done = cluster.hosts.run(cluster.client, train, check=False)
    assert done.returncode == 2
    assert "no such key" in done.stdout
    assert "Traceback" not in done.stdout
    assert all(cluster.hosts.pids(host, b"ray::RayTrainWorker") == [] for host in cluster.workers)
    store.endpoint.faults.clear()
    assert store.names("denied/run") == []
