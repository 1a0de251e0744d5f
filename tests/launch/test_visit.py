"""The dialogue with machines, over a real ssh: what is made of their answers."""

from tests.launch.conftest import Hosts

from shoal_ray.launch.cluster_file import ClusterFile
from shoal_ray.launch.host_check import check_hosts
from shoal_ray.launch.visit import visit_all


def test_a_head_alone_has_nobody_to_reach(hosts: Hosts) -> None:
    file = ClusterFile.read(hosts.file(["127.0.0.1"]))
    [visit] = visit_all(file)
    assert visit.trouble == ""
    assert visit.unreached == {}
    [network] = [finding for finding in check_hosts(file) if finding.what == "network"]
    assert (network.good, network.found) == (True, "reaches 0 of 0")


def test_machines_reach_each_other(hosts: Hosts) -> None:
    head, worker = visit_all(ClusterFile.read(hosts.file(["127.0.0.2", "127.0.0.3"])))
    assert head.unreached == {"127.0.0.3": None}
    assert worker.unreached == {"127.0.0.2": None}
