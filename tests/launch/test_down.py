"""`shoal cluster down` over a real ssh: every machine is told, and what is said of it is what happened there."""

from tests.launch.conftest import Hosts

from shoal_ray.launch.cluster_file import ClusterFile
from shoal_ray.launch.down import stop_everything

HEAD, WORKER = "127.0.0.2", "127.0.0.3"


def test_the_head_is_stopped_though_ray_knows_of_none_here(hosts: Hosts) -> None:
    """`ray up` ran on another machine: Ray's own list of nodes is there."""
    found = list(stop_everything(ClusterFile.read(hosts.file([HEAD, WORKER]))))
    assert [(finding.where, finding.found, finding.good) for finding in found] == [
        (HEAD, "stopped", True),
        (WORKER, "stopped", True),
    ]
    assert hosts.told()[:2] == [f"{HEAD} stop", f"{WORKER} stop"]


def test_a_head_that_goes_on_is_named(hosts: Hosts) -> None:
    (hosts.home / "failing").write_text(f"{HEAD}\n")
    head, worker = stop_everything(ClusterFile.read(hosts.file([HEAD, WORKER])))
    assert (head.good, head.where, head.found) == (False, HEAD, "no permission to stop it")
    assert head.remedy
    assert worker.good
    assert hosts.told() == [f"{HEAD} stop", f"{WORKER} stop"]
