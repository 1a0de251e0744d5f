"""The hosts themselves, without Ray: what each has for itself, and how they end."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.hosts.hosts import SCRIPT, Hosts
from tests.hosts.table import page

LISTEN = """
import socket
server = socket.create_server(("", 5000))
print("listening", flush=True)
while True:
    server.accept()
"""
KNOCK = "import socket, sys; socket.create_connection((sys.argv[1], 5000), timeout=1)"

MAKE_AND_WAIT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from hosts import Hosts
with Hosts(2, Path(sys.argv[2])) as hosts:
    processes = [hosts.popen(host, ["sh", "-c", "echo; exec sleep 600"]) for host in ("h0", "h1")]
    for process in processes:
        process.stdout.readline()
    print(*hosts.pids("h0", b"600"), *hosts.pids("h1", b"600"), flush=True)
    time.sleep(600)
"""


@pytest.fixture
def pair(able: None, tmp_path: Path) -> Iterator[Hosts]:
    (tmp_path / "shared").mkdir()
    with Hosts(2, tmp_path / "disks", show=[tmp_path / "shared"], environment={"COLOUR": "blue"}) as hosts:
        yield hosts


@pytest.fixture
def server(pair: Hosts) -> Iterator[subprocess.Popen[str]]:
    """A server on h1."""
    with pair.popen("h1", ["python", "-c", LISTEN]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        yield process
        pair.signal("h1", b"create_server", signal.SIGKILL)


def reached(hosts: Hosts) -> bool:
    return hosts.run("h0", ["python", "-c", KNOCK, "h1"], check=False).returncode == 0


def test_a_host_has_what_is_its_own_and_sees_what_is_shared(pair: Hosts, tmp_path: Path) -> None:
    (tmp_path / "shared" / "note").write_text("for all")
    words = pair.run("h1", ["sh", "-c", "hostname; echo $COLOUR; ls -a $HOME /tmp; echo >> ~/mine"]).stdout.split()
    assert words[:2] == ["h1", "blue"]
    assert pair.run("h1", ["cat", tmp_path / "shared" / "note"]).stdout == "for all"
    assert (pair.home("h1") / "mine").exists()
    assert not (pair.home("h0") / "mine").exists()
    assert pair.run("h1", ["ls", "/proc"]).stdout.split().count("1") == 1
    assert pair.pids("h1") == []


def test_hosts_talk_unless_a_cable_is_out(pair: Hosts, server: subprocess.Popen[str]) -> None:
    before = pair.counters()["h1"]
    assert reached(pair)
    assert all(after > earlier for earlier, after in zip(before, pair.counters()["h1"], strict=True))
    with pair.parted("h1"):
        assert not reached(pair)
    assert reached(pair)
    with pair.lossy("h0", 99):
        assert not reached(pair)
    assert reached(pair)


def test_a_host_without_power_has_no_processes_and_comes_back_with_its_disk(
    pair: Hosts, server: subprocess.Popen[str]
) -> None:
    (pair.home("h1") / "note").touch()
    pair.crash("h1")
    assert server.wait(10) != 0
    assert pair.pids("h1") == []
    assert not reached(pair)
    assert "h1" not in pair.counters()
    pair.revive("h1")
    assert pair.run("h1", ["sh", "-c", "ls ~"]).stdout.split()[-1] == "note"
    assert pair.run("h0", ["getent", "hosts", "h1"]).stdout.split()[0] == pair.address("h1")


def test_hosts_end_with_a_maker_that_is_killed(able: None, tmp_path: Path) -> None:
    words = [sys.executable, "-c", MAKE_AND_WAIT, str(SCRIPT.parent), str(tmp_path / "disks")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        pids = [int(pid) for pid in maker.stdout.readline().split()]
        maker.kill()
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_table_shows_median_and_worst() -> None:
    def row(key: str, detected: float | None, again: float, redone: int, equal: bool) -> str:
        row = {"key": key, "detected_sec": detected, "again_sec": again, "redone": redone, "equal": equal}
        return json.dumps(row)

    record = [row("a", 1, 9, 640, True), row("a", 0.5, 7, 1280, True), row("a", 3, 8, 640, False)]
    record += [row("b", None, 2, 0, True)]
    text = page({"b": "B", "a": "A", "c": "C"}, record, steps=1, batch=2, checkpoint=3, injected=4)
    assert [line for line in text.splitlines() if line.startswith("| ")][1:] == [
        "| B | – | 2.0 s | 0 | yes |",
        "| A | 1.0 (3.0) s | 8.0 (9.0) s | 640 (1,280) | 2 of 3 |",
    ]
