"""``cluster.yaml`` as it is shipped, by Ray's launcher over ssh: up, a job, stop, resume, strangers, down."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.hosts.hosts import PROJECT, Hosts
from tests.hosts.machines import LAPTOP, Machines, missing_tools

from shoal.checkpoint import newest
from shoal.run_files import CHECKPOINTS, METRICS, read_rows

pytestmark = pytest.mark.hosts

DEADLINE_SEC = 300

RUN = (
    "seed-autoencoder",
    "nets.hidden=[16]",
    "nets.latent=8",
    "batch=64",
    "report.every_samples=1280",
    "report.images_every_samples=0",
    "report.quality_every_samples=0",
    "checkpoint.every_samples=1_000_000",  # so that only being stopped makes one
)

NODES = """
import sys
from ray._raylet import GcsClient
print(sum(node.state == 0 for node in GcsClient(address=sys.argv[1]).get_all_node_info(timeout=10).values()))
"""

INIT = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); print(ray.cluster_resources()['CPU'])"


@pytest.fixture(scope="module")
def machines(able: None, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A laptop, and three machines that nothing is installed on yet."""
    if why := missing_tools():
        pytest.skip(f"needs machines to log in to: {why}")
    with Hosts(4, tmp_path_factory.mktemp("disks") / "hosts", show=[shared]) as hosts:
        yield Machines(hosts)


@pytest.fixture(scope="module")
def launched(machines: Machines) -> Machines:
    """The same after what the guide says: look at them, which notes their keys for ssh, and ``ray up``."""
    machines.shoal("cluster", "check", machines.path)
    machines.run("ray", "up", "--yes", machines.path)
    wait(lambda: nodes(machines) == 3)
    return machines


def wait(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SEC
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.2)  # between two looks; nothing relies on its length


def nodes(machines: Machines) -> int:
    """Return how many nodes Ray has; the workers are started by the head, after ``ray up`` has returned."""
    gcs = f"{machines.hosts.address(machines.head)}:6379"
    done = machines.hosts.run(LAPTOP, ["python", "-c", NODES, gcs], environment={"RAY_AUTH_MODE": "token"}, check=False)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else 0


def listening(machines: Machines, host: str) -> dict[int, str]:
    """Return the ports of a machine that others can reach, and which program listens."""
    found = {}
    for line in machines.hosts.run(host, ["ss", "-ltnpH"]).stdout.splitlines():
        place, program = line.split()[3], line.partition('(("')[2].partition('"')[0]
        address, _, port = place.rpartition(":")
        if not address.strip("[]").removeprefix("::ffff:").startswith("127.") and program != "sshd":
            found[int(port)] = program
    return found


def test_the_machines_are_looked_at_before(machines: Machines) -> None:
    found = json.loads(machines.shoal("cluster", "check", machines.path, "--json"))
    addresses = [machines.hosts.address(host) for host in (machines.head, *machines.workers)]
    answers = {(finding["where"], finding["what"]): finding["found"] for finding in found}
    for address in addresses:
        assert answers[address, "ssh"] == "answers"
        assert answers[address, "network"] == "reaches 2 of 2"
        assert abs(float(answers[address, "clock"].split()[0])) < 5


def test_a_machine_out_of_reach_is_named(machines: Machines) -> None:
    head, first, second = (machines.hosts.address(host) for host in (machines.head, *machines.workers))
    machines.hosts.signal(machines.workers[0], b"sshd", signal.SIGTERM)
    wall = f"tcp dport 52365 ip saddr {head} reject"
    with machines.walled(machines.workers[1], wall):
        found = json.loads(machines.shoal("cluster", "check", machines.path, "--json", code=2))
    machines.start_sshd(machines.workers[0])
    bad = {(finding["where"], finding["what"]): finding for finding in found if not finding["good"]}
    assert bad.keys() == {(first, "ssh"), (head, "network")}
    assert f"cannot reach {second}" in bad[head, "network"]["found"]
    assert all(finding["remedy"] for finding in bad.values())


def test_a_stranger_gets_nothing_but_figures(launched: Machines) -> None:
    """Reaches every port, has no token: only Prometheus' figures, in clear text, are for everyone."""
    for host in (launched.head, *launched.workers):
        ports = listening(launched, host)
        assert 8265 not in ports
        assert "raylet" in ports.values()
        script = str(PROJECT / "tests/hosts/knock.py")
        knock = ["python", script, launched.hosts.address(host), *map(str, ports)]
        given = json.loads(launched.hosts.run(LAPTOP, knock, timeout=DEADLINE_SEC).stdout)
        opened = {port: what for port, what in given.items() if what}
        assert all(what.startswith("HTTP 200 /: b'# HELP") and "gRPC" not in what for what in opened.values()), opened
        assert len(opened) <= 3


def test_a_driver_without_the_token_is_refused(launched: Machines) -> None:
    """Also on a machine of the cluster, by a user who cannot read the token there."""
    here, token = launched.workers[0], {"RAY_AUTH_MODE": "token"}
    init = ["python", "-c", INIT, f"{launched.hosts.address(launched.head)}:6379"]
    assert float(launched.hosts.run(here, init, environment=token, timeout=DEADLINE_SEC).stdout.split()[-1]) >= 3
    for wrong in (token | {"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}):
        refused = launched.hosts.run(here, init, environment=wrong, check=False, timeout=DEADLINE_SEC)
        assert refused.returncode != 0
        assert "uthentication" in refused.stdout


def test_a_submission_without_the_token_is_refused(launched: Machines) -> None:
    """Also by who has a key for ssh, and so a tunnel to the dashboard."""
    folder = launched.hosts.home(LAPTOP) / ".ray"
    words = ("jobs", "list", "--cluster", launched.path)
    launched.shoal(*words)
    (folder / "auth_token").rename(folder / "kept")
    try:
        said = launched.shoal(*words, code=2)
        assert "token" in said
        (folder / "auth_token").write_text("0" * 64)
        said = launched.shoal(*words, code=2)
        assert "token" in said
    finally:
        (folder / "kept").rename(folder / "auth_token")


def test_a_job_is_stopped_and_goes_on(launched: Machines, data: Path, shared: Path) -> None:
    run, place = shared / "submitted", ("--cluster", launched.path)
    folder = launched.hosts.home(LAPTOP) / "code"
    folder.mkdir()
    (folder / "notes.txt").write_text("what a person has there")
    submit = ("submit", *place, "--working-dir", f"{Path.home()}/code", "--name")
    train = ("train", *RUN, "duration_samples=64_000_000", "--data", data, "--out", run, "--workers", "2")
    launched.shoal(*submit, "first", "--", *train)
    wait(lambda: bool(read_rows(run / METRICS)))
    launched.shoal("jobs", "stop", *place, "--wait", "first")
    stopped = read_rows(run / METRICS)[-1]["samples"]
    found = newest(run / CHECKPOINTS)
    assert found is not None
    assert found.samples == stopped > 0
    state = {job["id"]: job["state"] for job in jobs(launched, place)}
    assert state["first"] == "stopped"
    again = ("train", "--resume", "--out", run, f"duration_samples={stopped + 6400}")
    launched.shoal(*submit, "second", "--", *again)
    wait(lambda: any(job["ended"] for job in jobs(launched, place) if job["id"] == "second"))
    rows = read_rows(run / METRICS)
    assert [row["samples"] for row in rows] == sorted({row["samples"] for row in rows})
    assert rows[-1]["samples"] >= stopped + 6400
    assert stopped in [row["samples"] for row in rows]  # nothing was done twice, nothing was left out


def jobs(machines: Machines, place: tuple[str, ...]) -> list[dict[str, Any]]:
    return list(json.loads(machines.shoal("jobs", "list", *place, "--all", "--json")))


def test_down_leaves_nothing_behind(launched: Machines) -> None:
    launched.shoal("cluster", "down", launched.path)
    for host in (launched.head, *launched.workers):
        for program in (b"gcs_server", b"raylet", b"ray::"):
            assert launched.hosts.pids(host, program) == []
