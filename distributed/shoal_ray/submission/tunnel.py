"""The way to a cluster of one's own machines: an ssh tunnel to its head, for as long as a command lasts.

Its end here is a socket in a folder that only we may enter, not a port: when ssh dies, and while it logs in, a port is
free for any user of this machine to listen at, who would be sent the token.
"""

import contextlib
import ctypes
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from shoal.errors import ClusterError, ConfigError
from shoal_ray.submission import socket_file
from shoal_ray.submission.api import UnreachableError

DASHBOARD_PORT = 8265
OPEN_SEC = 30.0
"""How long ssh may take; when someone has to type a passphrase, that does not count."""

LOOK_SEC = 0.05
PR_SET_PDEATHSIG = 1

OPTIONS = (
    "ExitOnForwardFailure=yes",
    "ConnectTimeout=10",
    "ServerAliveInterval=10",  # so that a line that went dead ends ssh, and is opened anew
    "ServerAliveCountMax=3",
    "ControlPath=none",  # a connection that is shared would outlive us, forwarding and all
    "StreamLocalBindUnlink=yes",  # an ssh that was killed leaves its socket
)


@dataclass(frozen=True)
class Login:
    """How to get to a cluster's head, out of its ``cluster.yaml``.

    Attributes:
        host: its address.
        user, key, proxy_command: as in the file; None where it leaves that to ssh.
    """

    host: str
    user: str | None = None
    key: Path | None = None
    proxy_command: str | None = None

    @classmethod
    def read(cls, file: Path) -> "Login":
        """Read the provider's and the login's section of a Ray cluster file.

        Raises:
            ConfigError: no such file, not a cluster file, or one of a cloud.
        """
        try:
            sections = yaml.safe_load(file.read_text())
            provider, auth = sections["provider"], sections.get("auth") or {}
            kind, host = provider["type"], provider.get("head_ip")
            user, key, proxy = (auth.get(name) for name in ("ssh_user", "ssh_private_key", "ssh_proxy_command"))
        except OSError as error:
            raise ConfigError(f"--cluster {file}: {error.strerror}; give the file that `ray up` takes") from None
        except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, AttributeError):
            raise ConfigError(f"--cluster {file} is not a Ray cluster file; give the one that `ray up` takes") from None
        if kind != "local" or not isinstance(host, str):
            raise ConfigError(
                f"--cluster {file}: its head's address is known to the provider '{kind}' only; run `ray dashboard"
                f" {shlex.quote(str(file))}`, which opens a tunnel, and give --address http://127.0.0.1:{DASHBOARD_PORT}"
            )
        if not all(isinstance(word, str | None) for word in (user, key, proxy)):
            raise ConfigError(f"--cluster {file}: what stands under auth has to be text; put it in quotes")
        return cls(host, user, Path(key).expanduser() if key else None, proxy)

    def command(self, end: Path) -> list[str]:
        """Return the words of ssh that forward a socket here to the dashboard there; known_hosts is ssh's own."""
        options = [*OPTIONS, *([f"ProxyCommand={self.proxy_command}"] if self.proxy_command else [])]
        return [
            "ssh",
            "-N",
            *(word for option in options for word in ("-o", option)),
            "-L",
            f"{end}:127.0.0.1:{DASHBOARD_PORT}",
            *(["-i", str(self.key), "-o", "IdentitiesOnly=yes"] if self.key else []),
            *(["-l", self.user] if self.user else []),
            "--",
            self.host,
        ]


class Tunnel:
    """An ssh process that forwards a socket of this machine to a head's dashboard.

    Attributes:
        socket: where it listens, while it is open.
        address: the URL of the dashboard, through that socket.
    """

    def __init__(self, login: Login) -> None:
        self._login = login
        self._folder = tempfile.TemporaryDirectory(prefix="shoal-", dir="/tmp")  # short: a socket's path has 107 bytes
        self._ssh: subprocess.Popen[bytes] | None = None
        self._said = tempfile.TemporaryFile()  # not a pipe, which a talkative ssh would fill  # noqa: SIM115
        self.socket = Path(self._folder.name) / "head"
        self.address = f"http://127.0.0.1:{DASHBOARD_PORT}"

    @contextlib.contextmanager
    def opened(self) -> Iterator["Tunnel"]:
        """Keep it open while the block lasts."""
        try:
            self.mend()
            yield self
        finally:
            self._end()
            self._said.close()
            self._folder.cleanup()

    def mend(self) -> None:
        """Open it, unless it is open.

        Raises:
            UnreachableError: ssh gave up, with its words; or it took too long.
            ClusterError: there is no ssh.
        """
        if self._ssh is not None and self._is_open(self._ssh):
            return
        self._end()
        words = self._login.command(self.socket)
        self._said.seek(0)
        self._said.truncate()
        try:
            self._ssh = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,  # it asks for a passphrase at the terminal itself
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                preexec_fn=_bound_to_us,
            )
        except FileNotFoundError:
            raise ClusterError("there is no ssh here; install it, or give --address instead of --cluster") from None
        patience = None if sys.stdin.isatty() else time.monotonic() + OPEN_SEC
        while not self._is_open(self._ssh):
            if self._ssh.poll() is not None:
                self._said.seek(0)
                said = self._said.read().decode(errors="replace").strip() or "it said nothing"
                raise UnreachableError(
                    f"no tunnel to the head: ssh said: {said}. `{shlex.join(words)}` has to work here; where it asks"
                    " about the host's key, log in once by hand",
                    f"ssh said: {said.splitlines()[-1]}",
                )
            if patience is not None and time.monotonic() > patience:
                self._end()
                raise UnreachableError(
                    f"no tunnel to the head {self._login.host}: ssh took more than {OPEN_SEC:g} s;"
                    f" `{shlex.join(words)}` has to work here",
                    f"ssh took more than {OPEN_SEC:g} s",
                )
            time.sleep(LOOK_SEC)

    def _is_open(self, ssh: "subprocess.Popen[bytes]") -> bool:
        try:
            socket_file.connect(self.socket, timeout=1).close()
        except OSError:
            return False
        return ssh.poll() is None

    def _end(self) -> None:
        if self._ssh is not None:
            self._ssh.terminate()
            self._ssh.wait()
            self._ssh = None


def _bound_to_us() -> None:
    """Have ssh end when this process does, however that is, and not by a Ctrl-C that is meant for us alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
