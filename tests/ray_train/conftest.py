"""A small data set, what an undisturbed run of it comes to, and a cluster of two nodes."""

import gc
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.processes import finish, start
from tests.ray_train.runs import WORDS

from shoal.data.write import write_dataset


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """Have what Ray's own test cluster leaves open (sockets of ports that it chose) collected here and nowhere else."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (256, 1, 8, 8), dtype=np.uint8)
    path = tmp_path_factory.mktemp("ray") / "data"
    splits = {"train": [(images[:200], None)], "test": [(images[200:], None)]}
    write_dataset(path, splits, shape=(1, 8, 8), class_names=None, source="test", rows_per_block=32)
    return path


@pytest.fixture(scope="session")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on two ranks under torchrun, without Ray; what the disturbed runs must come to."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    said = finish(start("train", *WORDS, "--data", data, "--out", run, launcher=torchrun))
    assert "2 worker(s)" in said
    return run


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """Yield the address of a cluster of two nodes with one CPU each, on this machine."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "dashboard_port": None})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]  # ray's own
