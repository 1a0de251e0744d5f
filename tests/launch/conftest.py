"""Machines to log in to: addresses of loopback behind one real sshd, with a home that is the test's own."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")

FILE = """
cluster_name: {name}
provider: {{type: local, head_ip: {head}, worker_ips: [{workers}]}}
auth: {{ssh_user: root, ssh_private_key: {key}}}
"""

RAY = """#!/bin/sh
address=${SSH_CONNECTION% *}; address=${address##* }
echo "$address $*" >>"$HOME/told"
if grep -qx "$address" "$HOME/failing"; then echo "no permission to stop it"; exit 1; fi
"""
"""In place of Ray's command: who was told what; it fails where the test says so."""


@dataclass(frozen=True)
class Hosts:
    """What can be logged in to.

    Attributes:
        home: of the user there; ``told`` in it says what `ray` was called with, ``failing`` where that fails.
    """

    home: Path

    def file(self, addresses: Sequence[str]) -> Path:
        """Write a launcher's file for these machines."""
        path, (head, *workers) = self.home / "cluster.yaml", addresses
        name = f"test-{os.getpid()}"
        path.write_text(FILE.format(name=name, head=head, workers=", ".join(workers), key=self.home / "user"))
        return path

    def told(self) -> list[str]:
        """Return ``ADDRESS WORDS`` for each call of `ray`."""
        return (self.home / "told").read_text().splitlines()


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    """Any address of loopback as a machine, for as long as the test lasts."""
    if SSHD is None or os.geteuid() != 0 or shutil.which("ssh") is None:
        pytest.skip("needs root, and Debian's openssh-server")
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    (home / "bin/ray").write_text(RAY)
    (home / "bin/ray").chmod(0o755)
    (home / ".bashrc").write_text(f"export PATH={home}/bin:{Path(sys.executable).parent}:/usr/bin:/bin\n")
    for name in ("told", "failing"):
        (home / name).write_text("")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / name], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    settings = {
        "Port": port,
        "HostKey": home / "host",
        "AuthorizedKeysFile": home / "user.pub",
        "PidFile": "none",
        "UsePAM": "no",
        "StrictModes": "no",
        "PermitRootLogin": "yes",
        "PasswordAuthentication": "no",
        "SetEnv": f"HOME={home}",
    }
    (home / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    # In place of the user's own ~/.ssh: which port, and whom it knows. `-a ssh`, so that a jump finds it as well.
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    options = f"-o Port={port} -o UserKnownHostsFile={home}/known -o GlobalKnownHostsFile=none"
    ssh.write_text(f'#!/bin/bash\nexec -a ssh {shutil.which("ssh")} {options} "$@"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where Ray's launcher keeps what it knows
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    with subprocess.Popen([SSHD, "-D", "-e", "-f", home / "sshd_config"], stderr=subprocess.PIPE, text=True) as daemon:
        try:
            assert daemon.stderr is not None
            while "listening" not in (line := daemon.stderr.readline()):
                assert line, "sshd ended"
            yield Hosts(home)
        finally:
            daemon.terminate()
            daemon.communicate()
