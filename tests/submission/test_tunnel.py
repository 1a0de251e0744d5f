"""The tunnel of `--cluster`, through a real sshd on loopback with keys of its own."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.processes import descendants
from tests.submission.conftest import Cluster, free_ports, wait_for
from tests.submission.dashboard import dashboard

from shoal.errors import ClusterError, ConfigError
from shoal_ray.submission import tunnel
from shoal_ray.submission.api import UnreachableError
from shoal_ray.submission.connect import connected
from shoal_ray.submission.follow import follow
from shoal_ray.submission.tunnel import Login, Tunnel

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")

needs_sshd = pytest.mark.skipif(
    SSHD is None or os.geteuid() != 0 or shutil.which("ssh") is None, reason="needs root, and Debian's openssh-server"
)

CLUSTER = """
cluster_name: test
provider:
  type: local
  head_ip: 127.0.0.1
  worker_ips: []
auth:
  ssh_user: root
  ssh_private_key: {key}
"""


class Daemon:
    """The sshd of a head, which can be away for a while."""

    def __init__(self, config: Path, port: int) -> None:
        self._config = config
        self._port = port
        self.start()

    def start(self) -> None:
        assert SSHD is not None
        self._process = subprocess.Popen([SSHD, "-D", "-e", "-f", self._config], stderr=subprocess.DEVNULL)
        wait_for(self._listens)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _listens(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1):
            return True
        return False


@dataclass(frozen=True)
class Head:
    """An sshd, and how this machine gets to it.

    Attributes:
        file: the cluster file.
        known_hosts: what ssh knows of it; empty at first.
        host_key: what belongs there.
        daemon: the sshd.
    """

    file: Path
    known_hosts: Path
    host_key: str
    daemon: Daemon

    def introduce(self) -> None:
        self.known_hosts.write_text(self.host_key)


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    (port,) = free_ports(1)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    (tmp_path / "authorized").write_text((tmp_path / "user.pub").read_text())
    (tmp_path / "authorized").chmod(0o600)
    Path("/run/sshd").mkdir(exist_ok=True)
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": tmp_path / "host",
        "AuthorizedKeysFile": tmp_path / "authorized",
        "PidFile": "none",
        "UsePAM": "no",
        "StrictModes": "no",
        "PermitRootLogin": "yes",
        "PasswordAuthentication": "no",
    }
    (tmp_path / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    # In place of the user's own ~/.ssh: which port, and whom it knows.
    mine = {"Port": port, "UserKnownHostsFile": tmp_path / "known", "GlobalKnownHostsFile": "none", "BatchMode": "yes"}
    (tmp_path / "ssh_config").write_text("".join(f"{key} {value}\n" for key, value in mine.items()))
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {tmp_path / "ssh_config"} "$@"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    (tmp_path / "cluster.yaml").write_text(CLUSTER.format(key=tmp_path / "user"))
    daemon = Daemon(tmp_path / "sshd_config", port)
    try:
        yield Head(
            tmp_path / "cluster.yaml",
            tmp_path / "known",
            f"[127.0.0.1]:{port} {' '.join((tmp_path / 'host.pub').read_text().split()[:2])}\n",
            daemon,
        )
    finally:
        daemon.stop()


def tunnels_of(pid: int) -> list[int]:
    return [child for child, title in descendants(pid).items() if title.startswith(b"ssh\0") or b"/ssh\0" in title]


def end_of(ssh: int) -> Path:
    """Return where a tunnel ends here."""
    words = Path(f"/proc/{ssh}/cmdline").read_text().split("\0")
    return Path(words[words.index("-L") + 1].partition(":")[0])


def kill(pid: int) -> None:
    """Kill a process, and come back when it takes no calls any more."""
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: has_ended(pid))


def has_ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()


@needs_sshd
def test_a_command_goes_through_and_a_broken_tunnel_is_opened_again(
    head: Head, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "DASHBOARD_PORT", cluster.port)
    monkeypatch.setenv("RAY_AUTH_TOKEN", cluster.token)
    head.introduce()
    with connected(None, head.file, print) as api:
        assert isinstance(api.jobs(), list)
        (ssh,) = tunnels_of(os.getpid())
        os.kill(ssh, signal.SIGKILL)
        assert isinstance(api.jobs(), list)
        (again,) = tunnels_of(os.getpid())
        assert again != ssh
        os.kill(again, signal.SIGINT)  # a Ctrl-C reaches it too, and is not meant for it
        assert isinstance(api.jobs(), list)
        assert tunnels_of(os.getpid()) == [again]
    assert tunnels_of(os.getpid()) == []
    with pytest.raises(ConfigError, match="give one"), connected(cluster.address, head.file, print):
        pass


@needs_sshd
def test_a_log_is_followed_over_a_head_that_is_away(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    head.introduce()
    notes: list[str] = []
    with dashboard() as cluster:
        job = cluster.add("x", log="said meanwhile\n")
        monkeypatch.setattr(tunnel, "DASHBOARD_PORT", cluster.port)

        def note(text: str) -> None:
            notes.append(text)
            if len(notes) == 1:
                head.daemon.start()
            else:
                job["status"] = "SUCCEEDED"

        written: list[str] = []
        with connected(None, head.file, print) as api:
            head.daemon.stop()
            (ssh,) = tunnels_of(os.getpid())
            kill(ssh)
            assert follow(api, "x", written.append, note).state == "finished"
        assert "/api/jobs/x/logs/tail" in cluster.asked  # through the tunnel too
    assert [text.partition(" (")[0] for text in notes] == [
        "the line to the cluster broke",
        "the line to the cluster is there again",
    ]
    assert "Connection refused" in notes[0]
    assert written == ["said meanwhile\n"]


@needs_sshd
def test_what_ssh_says_again_is_its_last_words_only(head: Head) -> None:
    head.introduce()
    with Tunnel(Login.read(head.file)).opened() as opened:
        head.daemon.stop()
        (ssh,) = tunnels_of(os.getpid())
        kill(ssh)
        said = []
        for _ in range(2):
            with pytest.raises(UnreachableError, match="Connection refused") as refusal:
                opened.mend()
            said.append(str(refusal.value))
        head.daemon.start()
    assert said[0] == said[1]


@needs_sshd
def test_an_ssh_that_is_late_is_ended(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    head.introduce()
    with Tunnel(Login.read(head.file)).opened() as opened:
        (before,) = tunnels_of(os.getpid())
        kill(before)
        monkeypatch.setattr(tunnel, "OPEN_SEC", 0.2)
        (head.file.parent / "bin" / "ssh").write_text("#!/bin/sh\nexec sleep 600\n")
        with pytest.raises(UnreachableError, match=r"took more than 0.2 s; `ssh .*` has to work"):
            opened.mend()
        assert [title for title in descendants(os.getpid()).values() if b"sleep" in title] == []


@needs_sshd
def test_nobody_else_can_listen_where_the_token_is_sent(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    head.introduce()
    with dashboard() as cluster:
        monkeypatch.setattr(tunnel, "DASHBOARD_PORT", cluster.port)
        with connected(None, head.file, print) as api:
            (ssh,) = tunnels_of(os.getpid())
            end = end_of(ssh)
            assert end.is_socket()  # a port would be anybody's as soon as ssh is gone
            assert stat.S_IMODE(end.parent.stat().st_mode) == 0o700
            kill(ssh)
            assert api.jobs() == []
        assert set(cluster.tokens) == {"Bearer right"}
    assert not end.parent.exists()


@needs_sshd
def test_a_host_that_is_not_known_is_not_trusted(head: Head) -> None:
    unknown = pytest.raises(ClusterError, match=r"(?s)Host key verification failed.*log in once by hand")
    with unknown, Tunnel(Login.read(head.file)).opened():
        pass
    head.introduce()
    (head.file.parent / "authorized").write_text("")
    with pytest.raises(ClusterError, match="Permission denied"), Tunnel(Login.read(head.file)).opened():
        pass


@needs_sshd
def test_no_tunnel_outlives_who_opened_it(head: Head) -> None:
    head.introduce()
    code = (
        "import sys, time; from pathlib import Path; from shoal_ray.submission.tunnel import Login, Tunnel\n"
        "with Tunnel(Login.read(Path(sys.argv[1]))).opened(): print(flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, head.file], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    (ssh,) = tunnels_of(process.pid)
    end = end_of(ssh)
    process.kill()
    process.wait()
    wait_for(lambda: has_ended(ssh))
    shutil.rmtree(end.parent)  # which nobody was left to do
    process.stdout.close()


def test_words_of_a_file_are_words_of_ssh(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("{provider: {type: local, head_ip: '-oProxyCommand=touch /x'}, auth: {ssh_user: 'a b; c'}}")
    words = Login.read(file).command(Path("/here/socket"))
    assert words[-2:] == ["--", "-oProxyCommand=touch /x"]  # a host, whatever it looks like
    assert words[words.index("-l") + 1] == "a b; c"
    assert "/here/socket:127.0.0.1:8265" in words
    assert "-i" not in words


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("provider: {type: aws}", "ray dashboard"),
        ("provider: {type: local}", "ray dashboard"),
        ("[]", "not a Ray cluster file"),
        ("a: [", "not a Ray cluster file"),
        ("", "not a Ray cluster file"),
        ("{provider: {type: local, head_ip: h}, auth: [root]}", "not a Ray cluster file"),
        ("{provider: {type: local, head_ip: h}, auth: {ssh_private_key: 5}}", "has to be text"),
    ],
)
def test_another_file_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        Login.read(tmp_path / "cluster.yaml")
    with pytest.raises(ConfigError, match="No such file"):
        Login.read(tmp_path / "none.yaml")
