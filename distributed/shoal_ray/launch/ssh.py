"""Logging in to the machines of a launcher's file, as its launcher would.

Nothing of the file goes through a shell but its ``ssh_proxy_command``, which ssh hands to one: that is what it is for.
"""

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shoal.errors import ClusterError
from shoal_ray.launch.cluster_file import ClusterFile

CONNECT_SEC = 10
QUOTE = '"'

OPTIONS = {
    "BatchMode": "yes",  # a question that nobody answers would stay
    "ConnectTimeout": str(CONNECT_SEC),
    "ConnectionAttempts": "1",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "StrictHostKeyChecking": "accept-new",
    "LogLevel": "ERROR",
}


class Ssh:
    """The way to a file's machines: to the head from here, to the workers through the head.

    The head is the one that starts the workers, and they may be within reach of nobody else.
    """

    def __init__(self, config: Path) -> None:
        self._config = config

    def words(self, address: str, remote: str) -> list[str]:
        """Return the command that runs a fixed piece of shell on a machine; its words are ours, never a user's."""
        return ["ssh", "-F", str(self._config), "-T", address, remote]

    def popen(self, address: str, remote: str) -> subprocess.Popen[str]:
        """Start it, with pipes to its standard streams."""
        return subprocess.Popen(
            self.words(address, remote),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )

    def run(self, address: str, remote: str, timeout_sec: float) -> str | None:
        """Run it to its end; return None, or the last thing it complained about."""
        try:
            done = subprocess.run(
                self.words(address, remote),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=timeout_sec,
            )
        except subprocess.TimeoutExpired:
            return f"no answer in {timeout_sec:g} s"
        return None if done.returncode == 0 else last_line(done.stdout) or f"exit code {done.returncode}"


@contextmanager
def ways(file: ClusterFile) -> Iterator[Ssh]:
    """Write ssh's settings for a file's machines, for as long as they are needed.

    Raises:
        ClusterError: no ssh here.
    """
    with tempfile.TemporaryDirectory(prefix="shoal-ssh-") as folder:
        config = Path(folder) / "config"
        config.write_text("\n".join(_settings(file)) + "\n")
        try:
            subprocess.run(["ssh", "-V"], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            raise ClusterError("no ssh on this machine; install OpenSSH's client") from None
        yield Ssh(config)


def _settings(file: ClusterFile) -> Iterator[str]:
    auth = file.auth
    head, *workers = file.addresses
    for worker in workers:
        yield f"Host {worker}\n  ProxyJump {head}"
    if command := auth.get("ssh_proxy_command"):
        yield f"Host {head}\n  ProxyCommand {_one_line(command)}"  # the file's author's own command, as Ray runs it
    yield "Host *"
    yield f"  User {auth['ssh_user']}"
    if key := auth.get("ssh_private_key"):
        path = str(Path(key).expanduser()).replace("%", "%%")
        yield f'  IdentityFile "{_one_line(path, refused=QUOTE)}"\n  IdentitiesOnly yes'
    yield from (f"  {name} {value}" for name, value in OPTIONS.items())
    # What is said first counts. Without this, a port or a name of the reader's own settings would be unknown.
    yield "Match all\n  Include ~/.ssh/config\n  Include /etc/ssh/ssh_config"


def _one_line(value: str, refused: str = "") -> str:
    if not value.isprintable() or any(character in value for character in refused):
        raise ClusterError(
            f"{value!r}: ssh's settings cannot hold it, with its quotes or line breaks; name it otherwise"
        )
    return value


def last_line(text: str) -> str:
    """Return the last line that says something."""
    lines: Sequence[str] = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
