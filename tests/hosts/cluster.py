"""A Ray cluster over hosts, with the settings that ``cluster.yaml`` ships, and what brings it back into order."""

import os
import re
import secrets
import time
from collections.abc import Sequence

import yaml
from tests.hosts.hosts import PROJECT, Hosts

PORT = 6379
STORE_BYTES = 80_000_000
"""Of Ray's object store on each node, which training hardly uses; Ray wants 75 MiB at least."""

DEADLINE_SEC = 90
"""For Ray to be in order again; several times what it takes on two busy cores."""

ATTEMPTS = 3
"""At starting Ray."""

LEAVING_SEC = 20
"""How long what is left of a run may take to end, before its host is switched off and on."""

ALIVE = """
import sys
from ray._raylet import GcsClient
nodes = GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5)
print(*(node.node_manager_address for node in nodes.values() if node.state == 0))
"""


def shipped(commands: Sequence[str]) -> dict[str, str]:
    """Return the environment that a list of commands in ``cluster.yaml`` gives to ``ray start``."""
    found = {name: value for command in commands for name, value in re.findall(r"\b(RAY_\w+)=(\S+)", command)}
    assert any(name.startswith("RAY_health_check_") for name in found)
    return {name: value.replace("$HOME", os.environ["HOME"]) for name, value in found.items()}


class RayCluster:
    """Ray on hosts that are up: the first is its head, the last the one where commands are typed; neither has a CPU.

    Attributes:
        head: the host of Ray's head.
        workers: the hosts with a CPU each.
        client: the host that commands are typed on.
        address: of the cluster, for ``--address``.
    """

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.head, *self.workers, self.client = hosts.names
        self.address = f"{hosts.address(self.head)}:{PORT}"
        launcher = yaml.safe_load((PROJECT / "cluster.yaml").read_text())
        self._settings = {host: shipped(launcher["worker_start_ray_commands"]) for host in hosts.names}
        self._settings[self.head] = shipped(launcher["head_start_ray_commands"])
        token = secrets.token_hex(32)
        for host in hosts.names:
            folder = hosts.home(host) / ".ray"
            folder.mkdir(mode=0o700)
            (folder / "auth_token").write_text(token)
            (folder / "auth_token").chmod(0o600)
        hosts.environment["RAY_AUTH_MODE"] = "token"

    def mend(self) -> None:
        """Bring the cluster to what it should be: cables in, hosts on, a node of Ray on each, nothing left of a run.

        Raises:
            AssertionError: it did not come to that in time.
        """
        began = time.monotonic()
        for host in filter(self.hosts.up, self.hosts.names):
            self.hosts.heal(host)
        while (lost := self.lost()) or (left := self._left_over()) or len(self.alive()) > len(self.hosts.names):
            assert time.monotonic() < began + DEADLINE_SEC, f"without Ray: {lost}"
            if self.head in lost:
                self.start(self.head)
            elif lost:
                self.start(*lost)
            elif left and time.monotonic() > began + LEAVING_SEC:
                self.start(*left)
            else:
                time.sleep(0.1)  # between two looks

    def start(self, *hosts: str) -> None:
        """Start Ray on hosts, switching them off and on before if anything runs there.

        Raises:
            AssertionError: Ray did not start.
        """
        failed = self._try_to_start(hosts)
        for _ in range(ATTEMPTS - 1):  # Ray's own patience is short: on a busy machine one at a time
            failed = {host: said for host in failed for said in self._try_to_start([host]).values()}
        assert not failed, "\n".join(f"{host}: {said}" for host, said in failed.items())

    def _try_to_start(self, hosts: Sequence[str]) -> dict[str, str]:
        """Start Ray on hosts; return what those said where it failed."""
        for host in hosts:
            if self.hosts.pids(host):
                self.hosts.crash(host)
            if not self.hosts.up(host):
                self.hosts.revive(host)
        started = {
            host: self.hosts.popen(host, self._command(host), environment=self._settings[host]) for host in hosts
        }
        said = {host: process.communicate()[0] for host, process in started.items()}
        return {host: said[host] for host, process in started.items() if process.returncode != 0}

    def alive(self) -> list[str]:
        """Return the host of every node that is alive as the head sees it: for a while twice, where one was lost."""
        client = next(host for host in reversed(self.hosts.names) if self.hosts.up(host))
        addresses = self.hosts.run(client, ["python", "-c", ALIVE, self.address]).stdout.split()
        return [host for host in self.hosts.names for address in addresses if address == self.hosts.address(host)]

    def lost(self) -> list[str]:
        """Return the hosts without a node of Ray that the head knows."""
        without = [host for host in self.hosts.names if not self.hosts.pids(host, b"raylet/raylet")]
        if self.head in without or not self.hosts.pids(self.head, b"gcs_server"):
            return [self.head]
        return without or [host for host in self.hosts.names if host not in self.alive()]

    def _left_over(self) -> list[str]:
        """Return the hosts on which a worker of a run is left, or the driver of a job."""
        titles = (b"ray::RayTrainWorker", b"shoal_ray.submission.inside")
        return [host for host in self.hosts.names if any(self.hosts.pids(host, title) for title in titles)]

    def _command(self, host: str) -> list[str]:
        role = [f"--address={self.address}"]
        if host == self.head:
            role = ["--head", f"--port={PORT}", "--dashboard-host=127.0.0.1", "--disable-usage-stats"]
            if path := self._settings[host].get("RAY_gcs_storage_path"):
                self.hosts.run(host, ["mkdir", "-p", path])
        cpus = int(host in self.workers)
        return ["ray", "start", *role, f"--num-cpus={cpus}", f"--object-store-memory={STORE_BYTES}"]
