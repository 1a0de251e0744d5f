"""What runs on each machine of a cluster to be: here, by the way it is started there, without the ssh."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from shoal_ray.launch import probe
from shoal_ray.launch.cluster_file import ClusterFile
from shoal_ray.launch.ssh import ways
from shoal_ray.launch.visit import BEGIN, PATIENCE_SEC

ROOT = Path(__file__).parents[2]
DEADLINE_SEC = 60


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The command that ssh is given, in a shell whose home has a talkative .bashrc."""
    (tmp_path / ".bashrc").write_text(f"echo hello from a .bashrc\nexport PATH={Path(sys.executable).parent}:$PATH\n")
    with subprocess.Popen(
        ["sh", "-c", BEGIN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"HOME": str(tmp_path), "PATH": "/usr/local/bin:/usr/bin:/bin"},
    ) as process:
        yield process
        process.kill()


def say(process: subprocess.Popen[str], words: object) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(words) + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    while not (line := process.stdout.readline()).startswith(probe.MARK):
        assert line, process.communicate()
    return dict(json.loads(line.removeprefix(probe.MARK)))


def test_tells_what_there_is_and_whom_it_reaches(process: subprocess.Popen[str]) -> None:
    with socket.create_server(("", 0)) as held, socket.create_server(("", 0)) as closed:
        taken, gone = held.getsockname()[1], closed.getsockname()[1]
        closed.close()
        say(process, Path(probe.__file__).read_text())
        assert hear(process) == {"ready": True}
        say(process, {"ports": [taken]})
        assert hear(process).keys() == {"now"}
        facts = hear(process)
        assert facts["python"] == list(sys.version_info[:3])
        assert facts["taken"] == [taken]
        assert facts["rsync"] is (shutil.which("rsync") is not None)
        assert facts["installed"] is False
        assert all(free > 0 for free in facts["free"].values())
        socket.create_connection(("127.0.0.1", facts["listening"]), timeout=DEADLINE_SEC).close()
        say(process, [["127.0.0.1", taken], ["localhost", gone]])
        assert hear(process) == {"127.0.0.1": None, "localhost": "Connection refused"}
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(DEADLINE_SEC) == 0  # leaves when the login ends


def test_many_machines_behind_a_firewall_that_drops_are_asked_at_once() -> None:
    """One after another would take longer than whoever asked waits for an answer."""
    with ExitStack() as held:
        full = held.enter_context(socket.create_server(("", 0), backlog=0))  # what does not fit is dropped
        port = full.getsockname()[1]
        for _ in range(4):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        addresses = [f"127.0.0.{number}" for number in range(1, 1 + PATIENCE_SEC // probe.CONNECT_SEC)]
        began = time.monotonic()
        found = probe.troubles_reaching([[address, port] for address in addresses])
        assert time.monotonic() - began < PATIENCE_SEC / 2
    assert found == dict.fromkeys(addresses, "timed out")


@pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh here")
def test_ssh_takes_every_word_of_the_file_for_what_it_is(tmp_path: Path) -> None:
    text = (ROOT / "cluster.yaml").read_text().replace("192.0.2.", "10.9.8.")
    text = text.replace("~/.ssh/id_ed25519 ", "'/keys/of %h; touch $(id) x' ")
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    settings = {}
    with ways(ClusterFile.read(path)) as ssh:
        for address in ("10.9.8.10", "10.9.8.12"):
            words = ssh.words(address, "true")
            said = subprocess.run([words[0], "-G", *words[1:-1]], capture_output=True, text=True, check=True).stdout
            settings[address] = dict(line.split(" ", 1) for line in said.splitlines() if " " in line)
    head, worker = settings["10.9.8.10"], settings["10.9.8.12"]
    assert head["user"] == worker["user"] == "ubuntu"
    assert head["identityfile"] == worker["identityfile"] == "/keys/of %%h; touch $(id) x"
    assert (head["batchmode"], head["identitiesonly"]) == ("yes", "yes")
    assert worker["proxyjump"].strip("[]") == "10.9.8.10"
    assert "proxyjump" not in head
