import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import requests
from tests.processes import descendants

from shoal.data.write import write_dataset
from shoal_ray.cli import main

DEADLINE_SEC = 240


@dataclass(frozen=True)
class Cluster:
    """A head that computes nothing and a worker node, both on this machine.

    Attributes:
        port: of the head's dashboard, on loopback.
        token: what lets one in.
        logs: the folder of everything that they log.
    """

    port: int
    token: str
    logs: Path

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str) -> requests.Response:
        return requests.get(self.address + path, headers={"Authorization": f"Bearer {self.token}"}, timeout=30)

    def nodes(self) -> list[dict[str, object]]:
        try:
            answer = self.ask("/api/v0/nodes").json()["data"]
            return list(answer["result"]["result"])
        except (requests.RequestException, ValueError, KeyError, TypeError):
            return []


def free_ports(num: int) -> list[int]:
    with_ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(num)]
    ports = [open_socket.getsockname()[1] for open_socket in with_ports]
    for open_socket in with_ports:
        open_socket.close()
    return ports


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SEC
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)  # between two looks; nothing relies on its length


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with TemporaryDirectory(prefix="shoal-", dir="/tmp") as root:  # a short path: sockets are in it
        yield from started(Path(root))


def started(root: Path) -> Iterator[Cluster]:
    token = "ab" * 32
    gcs, dashboard, client, *agents = free_ports(9)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    own = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
    head = {"head": None, "port": gcs, "dashboard-host": "127.0.0.1", "dashboard-port": dashboard, "num-cpus": 0}
    head |= {"ray-client-server-port": client, "temp-dir": str(root), "disable-usage-stats": None}

    def start(options: dict[str, object], ports: list[int]) -> subprocess.Popen[bytes]:
        options = {**options, "block": None, **dict(zip(own, ports, strict=True))}
        words = [f"--{name}" if value is None else f"--{name}={value}" for name, value in options.items()]
        with (root / "started").open("ab") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", *words],
                env=environment,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    found = Cluster(dashboard, token, root / "session_latest")

    processes = [start(dict(head), agents[:3])]

    def has_worker() -> bool:
        if processes[-1].poll() is not None:  # a machine under load: it waited half a minute for itself
            processes.append(start({"address": f"127.0.0.1:{gcs}", "num-cpus": 2}, agents[3:]))
        return len(found.nodes()) == 2

    try:
        wait_for(lambda: len(found.nodes()) == 1)
        processes.append(start({"address": f"127.0.0.1:{gcs}", "num-cpus": 2}, agents[3:]))
        wait_for(has_worker)
        yield found
    finally:
        for pid in [pid for process in processes for pid in descendants(process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # nobody needs it to be left in order
        for process in processes:
            process.wait()


@pytest.fixture
def shoal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cluster: Cluster
) -> Callable[..., "Said"]:
    """Run the command line in this process, in touch with the cluster."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", cluster.address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", cluster.token)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["shoal", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, error = capsys.readouterr()
        assert "Traceback" not in error
        return Said(code, out, error)

    return run


@dataclass(frozen=True)
class Said:
    """What a command printed, and how it ended."""

    code: int
    out: str
    error: str


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (256, 1, 8, 8), dtype=np.uint8)
    path = tmp_path_factory.mktemp("jobs") / "data"
    splits = {"train": [(images[:200], None)], "test": [(images[200:], None)]}
    write_dataset(path, splits, shape=(1, 8, 8), class_names=None, source="test", rows_per_block=32)
    return path
