"""Hosts as a person has them before ``ray up``: an sshd on each, a key that opens them, a Python; and a laptop."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from tests.hosts.hosts import PROJECT, Hosts

TOOLS = {"sshd": "openssh-server", "ssh": "openssh-client", "ssh-keygen": "openssh-client", "rsync": "rsync"}
"""What a launcher works with besides the tools of hosts, and Debian's package of each."""

LAPTOP = "h0"
SSHD_SEC = 30

SCRIPT = "#!{python}\nimport sys\nfrom {module} import main\nsys.exit(main())\n"


def missing_tools() -> str | None:
    """Return what keeps machines from being made, or None: tools, or what builds the project without a network."""
    path = "/usr/sbin:/usr/local/bin:/usr/bin:/bin"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None and shutil.which(tool, path=path) is None]:
        return f"no {', '.join(missing)} (`make test-hosts` installs {' '.join({TOOLS[tool] for tool in missing})})"
    return None if find_spec("hatchling") else "no hatchling (pip install hatchling)"


class Machines:
    """A laptop and the machines of a cluster to be, by the shipped file with addresses, user and key filled in.

    Attributes:
        hosts: all of them; the laptop is the first.
        head, workers: hosts of the cluster.
        file: the launcher's file, on the laptop.
    """

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        _, self.head, *self.workers = hosts.names
        home = hosts.home(LAPTOP)
        self.file = home / "cluster.yaml"
        (home / ".ssh").mkdir(mode=0o700)
        key = home / ".ssh/id_ed25519"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        for host in (self.head, *self.workers):
            self._furnish(host, key.with_suffix(".pub"))
        self.file.write_text(self._filled_in())
        hosts.run(LAPTOP, ["ray", "get-auth-token", "--generate"])
        (home / ".ray/auth_token").chmod(0o600)

    def run(self, *command: str | Path, code: int = 0, timeout: float = 300) -> str:
        """Carry out a command on the laptop, in the project's folder; return what it said."""
        environment = {"RAY_AUTH_MODE": "token"}
        done = self.hosts.run(LAPTOP, command, cwd=PROJECT, environment=environment, check=False, timeout=timeout)
        assert done.returncode == code, done.stdout
        assert "Traceback" not in done.stdout
        return done.stdout

    def shoal(self, *words: str | Path, code: int = 0) -> str:
        """Carry out ``shoal`` there."""
        return self.run("python", "-m", "shoal_ray.cli", *words, code=code)

    @contextmanager
    def walled(self, host: str, rule: str) -> Iterator[None]:
        """Have a machine's firewall hold a rule of nftables for what comes in, inside the block."""
        rules = f"table inet wall {{ chain comes-in {{ type filter hook input priority 0; {rule}; }}; }}"
        self.hosts.run(host, ["nft", rules])
        try:
            yield
        finally:
            self.hosts.run(host, ["nft", "delete", "table", "inet", "wall"])

    @property
    def path(self) -> str:
        """Where the file is, as the laptop sees it."""
        return f"{Path.home()}/cluster.yaml"

    def _filled_in(self) -> str:
        text = (PROJECT / "cluster.yaml").read_text()
        addresses = [self.hosts.address(host) for host in (self.head, *self.workers)]
        for number, address in enumerate(addresses):
            text = self._replaced(text, f"192.0.2.1{number}", address)
        return self._replaced(text, "ssh_user: ubuntu", "ssh_user: root")

    @staticmethod
    def _replaced(text: str, old: str, new: str) -> str:
        assert text.count(old) == 1, old
        return text.replace(old, new)

    def _furnish(self, host: str, public: Path) -> None:
        """Give a machine a Python, an sshd, and what its pip would download: what is installed here."""
        home = self.hosts.home(host)
        (home / ".ssh").mkdir(mode=0o700)
        shutil.copy(public, home / ".ssh/authorized_keys")
        path = f"{Path(sys.base_prefix) / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        (home / ".bashrc").write_text(f"export PATH={path} OMP_NUM_THREADS=1\n")
        self._install_ahead(host)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / ".ssh/of_host"], check=True)
        self.start_sshd(host)

    def start_sshd(self, host: str) -> None:
        """Let a machine be logged in to."""
        options = {
            "HostKey": Path.home() / ".ssh/of_host",
            "PidFile": "/run/sshd.pid",
            "PermitRootLogin": "prohibit-password",
            "StrictModes": "no",
            "UsePAM": "no",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        sshd = shutil.which("sshd", path="/usr/sbin:/usr/bin") or "sshd"
        self.hosts.run(host, ["mkdir", "-p", "/run/sshd"])
        self.hosts.run(host, ["env", "-i", "PATH=/usr/local/bin:/usr/bin:/bin", sshd, "-f", "/dev/null", *words])
        deadline = time.monotonic() + SSHD_SEC
        while not self.hosts.pids(host, b"sshd"):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def _install_ahead(self, host: str) -> None:
        """Make the virtual environment of the file's setup, which sees all packages of this one but not the project."""
        there = f"{Path.home()}/shoal/.venv"
        self.hosts.run(host, [Path(sys.base_prefix) / "bin/python3", "-m", "venv", "--without-pip", there])
        venv = self.hosts.home(host) / "shoal/.venv"
        [packages] = venv.glob("lib/python*/site-packages")
        [ours] = Path(sys.prefix).glob("lib/python*/site-packages")
        (packages / "of_the_tests.pth").write_text(f"{ours}\n")
        for name, module in (("pip", "pip._internal.cli.main"), ("ray", "ray.scripts.scripts")):
            (venv / "bin" / name).write_text(SCRIPT.format(python=f"{there}/bin/python", module=module))
            (venv / "bin" / name).chmod(0o755)
        settings = self.hosts.home(host) / ".config/pip/pip.conf"
        settings.parent.mkdir(parents=True)
        settings.write_text("[install]\nno-index = true\nno-build-isolation = false\n")  # of two negations: none
