"""The doctor on a real Ray cluster of two nodes, one of which says that it has another torch."""

import json
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import ray
from tests.processes import finish, start
from tests.storage.s3 import S3


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of one node with one CPU."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "dashboard_port": None})
    try:
        yield cluster
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]  # ray's own


@pytest.fixture(scope="module")
def two_nodes(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the cluster with a second node, where the torch that is installed says that it is 1.0."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "torch-1.0.dist-info").mkdir()
    torch = distribution("torch")
    # Torch finds its own backends among the entry points.
    (folder / "torch-1.0.dist-info" / "entry_points.txt").write_text(torch.read_text("entry_points.txt") or "")
    metadata = (torch.read_text("METADATA") or "").replace(f"Version: {torch.version}", "Version: 1.0")
    (folder / "torch-1.0.dist-info" / "METADATA").write_text(metadata)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    return str(cluster.address)


def looked(code: int, *words: str | Path) -> dict[str, dict[str, Any]]:
    found = json.loads(finish(start("doctor", "--json", *words), code=code))
    assert found["healthy"] == (code == 0)
    return {finding["what"].partition(" 127.0.0.1")[0]: finding for finding in found["findings"]}


def test_a_cluster_of_one_node_has_no_network_to_measure(cluster: Any, tmp_path: Path) -> None:
    found = looked(0, "--address", cluster.address, "--storage", tmp_path / "runs")
    assert found["network"]["found"] == "one node: nothing to go between nodes"
    assert "shared by all 1 nodes" in found[f"storage {tmp_path / 'runs'} from all nodes"]["found"]
    (node,) = [finding for what, finding in found.items() if what.startswith("node ")]
    assert node["facts"]["resources"]["CPU"] == 1
    assert node["facts"]["versions"]["shoal"]
    assert found["versions on all nodes"]["good"]


def test_a_node_without_credentials_for_a_store_is_named(cluster: Any, s3: S3) -> None:
    found = looked(2, "--address", cluster.address, "--storage", str(s3.root), "--no-network")
    assert found[f"storage {s3.root}"]["good"]  # from here: the cluster was started before there were credentials
    (bad,) = [finding for finding in found.values() if not finding["good"]]
    assert bad["what"].startswith(f"storage {s3.root} from ")
    assert "the store refuses it" in bad["found"]


def test_nodes_are_compared_and_the_network_between_them_is_measured(two_nodes: str, tmp_path: Path) -> None:
    found = looked(2, "--address", two_nodes, "--storage", tmp_path / "runs", "--network-sec", "2")
    bad = {what: finding["found"] for what, finding in found.items() if not finding["good"]}
    assert list(bad) == ["torch on all nodes"], bad
    versions = found["torch on all nodes"]["facts"]
    assert len(versions) == 2
    assert len(versions["1.0"]) == 1
    assert len(found["clocks"]["facts"]) == 2
    assert all(abs(clock["offset_sec"]) < 1 for clock in found["clocks"]["facts"].values())
    assert "shared by all 2 nodes" in found[f"storage {tmp_path / 'runs'} from all nodes"]["found"]
    network = found["network"]["facts"]
    assert network["backend"] == "gloo"
    assert network["bus_bytes_per_sec"] > 1e6
    assert 0 < network["latency_sec"] < 1
    assert list(tmp_path.iterdir()) == []


def test_long_looks_can_be_left_out(two_nodes: str, tmp_path: Path) -> None:
    found = looked(2, "--address", two_nodes, "--storage", tmp_path / "runs", "--no-network", "--no-storage")
    assert "torch on all nodes" in found
    assert not any(what.startswith(("network", "storage")) for what in found)


def test_a_node_that_stops_answering_is_named_and_the_others_are_still_looked_at(
    two_nodes: str, tmp_path: Path
) -> None:
    from shoal_ray.cluster import connected
    from shoal_ray.doctor import nodes

    found: list[nodes.Node] = []
    with connected(two_nodes):
        list(nodes.look_at_nodes(found, quiet))
        fine, lost = found
        ray.kill(lost.inspector)
        storage = {finding.what: finding.good for finding in nodes.share_storage(found, tmp_path, quiet)}
        clocks = {finding.what: finding for finding in nodes.compare_clocks(found, quiet)}
    assert storage == {f"storage {tmp_path} from {lost.name}": False}
    assert not clocks[f"clock of {lost.name}"].good
    assert clocks["clocks"].good
    assert clocks["clocks"].facts.keys() == {fine.name}


def quiet(what: str, done: float, total: float | None) -> None:
    """Take no notice."""
