"""Several hosts on one machine, for tests: namespaces by ``hosts.sh``, and the processes in them.

    with Hosts(3, tmp_path / "hosts", show=[ROOT, data]) as hosts:
        hosts.run("h1", ["ray", "start", "--address=h0:6379"])
        driver = hosts.popen("h2", ["shoal", "train", …])
        hosts.signal("h1", b"ray::RayTrainWorker", signal.SIGKILL)
        with hosts.parted("h1"): …

A host has its own network, address (``hosts.address("h0")``), hostname, process table, ``/tmp``, ``/dev/shm``, ``/run``
and ``$HOME`` (from outside: ``hosts.home("h0")``). The rest of the file system is this machine's, and so are the paths
in ``show``: one folder there is what a cluster calls shared storage. Pids are this machine's: ``os.kill`` works.
Hosts end with the process that made them, however that ends.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeVar

SCRIPT = Path(__file__).with_name("hosts.sh")
PROJECT = SCRIPT.parents[2]

TOOLS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "nft": "nftables",
    "tini": "tini",
    "nsenter": "util-linux",
    "pgrep": "procps",
}
"""What hosts are made with, and Debian's package of each."""

COMMAND_SEC = 120
"""How long a command may take that a host is to carry out while a test waits."""

LIFE = b"cat\0"
"""What a host's first process waits for: it ends when what made the host ends."""

CLONE_NEWNET = 0x40000000

Command = Sequence[str | Path]
Result = TypeVar("Result")


class Hosts:
    """So many hosts, ``h0`` first; they are up inside the context.

    Args:
        num: how many.
        root: a folder for their disks, which does not exist yet.
        show: paths that every host shall see although they lie below ``/tmp``, ``/run`` or ``$HOME``. The project and
            its Python are seen anyway.
        environment: what every process of a host finds in its environment besides this process's own.
    """

    def __init__(
        self, num: int, root: Path, *, show: Sequence[Path] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        self.names = [f"h{number}" for number in range(num)]
        self.root = root
        self._net = os.environ.get("HOSTS_NET", "10.82.0")
        kept = [PROJECT, Path(sys.prefix), Path(sys.base_prefix), *show]
        self._own = os.environ | {
            "HOSTS_ROOT": str(root),
            "HOSTS_NET": self._net,
            "HOSTS_SHOW": ":".join(dict.fromkeys(str(path.resolve()) for path in kept)),
            "HOSTS_HELD": "1",
        }
        strange = ("AWS_", "RAY_", "SHOAL_", "HOSTS_", "GLOO_", "MASTER_")  # a test says all of these itself
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
        self.environment = (
            inherited
            | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
            | dict(environment or {})
        )
        self._life, self._held = os.pipe()

    def __enter__(self) -> Self:
        """Start all."""
        self._ask("up", str(len(self.names)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all of their processes; their disks go too."""
        self._ask("down")
        os.close(self._life)
        os.close(self._held)

    def address(self, host: str) -> str:
        """Return a host's IP address; its name leads there too, from any host."""
        return f"{self._net}.{10 + self.names.index(host)}"

    def home(self, host: str) -> Path:
        """Return where a host's ``$HOME`` is, seen from outside."""
        return self.root / host / "home"

    # --- commands ---

    def popen(
        self,
        host: str,
        command: Command,
        *,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: IO[str] | int = subprocess.PIPE,
    ) -> subprocess.Popen[str]:
        """Start a command on a host; its errors go where its output goes.

        The process is `nsenter`, which waits for it: signals are for ``signal`` and ``pids``.
        """
        return subprocess.Popen(
            self._words(host, command, cwd),
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment | dict(environment or {}),
        )

    def run(
        self,
        host: str,
        command: Command,
        *,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        check: bool = True,
        timeout: float = COMMAND_SEC,
    ) -> subprocess.CompletedProcess[str]:
        """Carry out a command on a host to its end.

        Raises:
            AssertionError: it failed, and ``check`` is set; with what it printed.
        """
        done = subprocess.run(
            self._words(host, command, cwd),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment | dict(environment or {}),
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"{host}: {' '.join(map(str, command))}: {done.stdout}"
        return done

    def on_network(self, host: str, action: Callable[[], Result]) -> Result:
        """Return ``action()``, carried out in this process, but on a host's network: what listens, listens there."""

        def act() -> Result:
            with Path(f"/proc/{self._pid(host)}/ns/net").open() as network:
                if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            return action()

        with ThreadPoolExecutor(1) as thread:  # of its own: it and the threads that it starts stay there
            return thread.submit(act).result()

    # --- processes ---

    def pids(self, host: str, title: bytes = b"") -> list[int]:
        """Return the pids of a host's processes whose command line holds ``title``: here, not there.

        Without the two that make the host: its first one, and what that waits for.
        """
        if not self.up(host):
            return []
        first = self._pid(host)
        space, found = self._space(first), []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != first:
                with suppress(OSError):  # ended meanwhile
                    words = (folder / "cmdline").read_bytes()
                    if title in words and words != LIFE and self._space(int(folder.name)) == space:
                        found.append(int(folder.name))
        return sorted(found)

    def signal(self, host: str, title: bytes, number: signal.Signals) -> list[int]:
        """Send a signal to the processes that ``pids`` finds; return which those were."""
        found = self.pids(host, title)
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return found

    # --- power and cables ---

    def up(self, host: str) -> bool:
        """Tell whether a host has power."""
        return (self.root / f"{host}.pid").exists()

    def crash(self, host: str) -> None:
        """Switch a host off; not a packet leaves it."""
        self._ask("crash", host)

    def revive(self, host: str) -> None:
        """Switch a host on again: the same disk and address, no processes."""
        self._ask("start", host)

    def part(self, host: str) -> None:
        """Pull a host's cable."""
        self._ask("part", host)

    def heal(self, host: str) -> None:
        """Put a host's cable back."""
        self._ask("heal", host)

    @contextmanager
    def parted(self, host: str) -> Iterator[None]:
        """Keep a host's cable out inside the block."""
        self.part(host)
        try:
            yield
        finally:
            self.heal(host)

    @contextmanager
    def lossy(self, host: str, percent: int) -> Iterator[None]:
        """Lose so many of a host's packets, in both directions, inside the block."""
        self._ask("loss", host, str(percent))
        try:
            yield
        finally:
            self._ask("unloss", host)

    @contextmanager
    def limited(self, host: str, rate: str) -> Iterator[None]:
        """Limit what a host receives, and what it sends, e.g. to ``20mbit``, inside the block."""
        self._ask("rate", host, rate)
        try:
            yield
        finally:
            self._ask("unrate", host)

    def counters(self) -> dict[str, tuple[int, int]]:
        """Return how many bytes each host has received and sent since it was switched on."""
        lines = (line.split() for line in self._ask("counters").splitlines())
        return {host: (int(received), int(sent)) for host, received, sent in lines}

    # ---

    def _ask(self, *words: str) -> str:
        done = subprocess.run(
            ["bash", SCRIPT, *words], stdin=self._life, capture_output=True, text=True, env=self._own, timeout=60
        )
        assert done.returncode == 0, f"hosts.sh {' '.join(words)}: {done.stderr}"
        return done.stdout

    def _words(self, host: str, command: Command, cwd: Path | None) -> list[str]:
        there = ["env", "-C", str(cwd)] if cwd else []
        enter = ["nsenter", "-t", str(self._pid(host)), "-m", "-u", "-i", "-n", "-p", "--"]
        return [*enter, *there, *map(str, command)]

    def _pid(self, host: str) -> int:
        return int((self.root / f"{host}.pid").read_text())

    @staticmethod
    def _space(pid: int) -> int:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino  # noqa: PTH116  # it is no file


def unable(root: Path) -> str | None:
    """Return why this machine cannot be several hosts, or None where it can; ``root`` is a folder to try it in."""
    if os.geteuid() != 0:
        return "not root"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        packages = dict.fromkeys(TOOLS[tool] for tool in missing)
        return f"no {', '.join(missing)} (`make test-hosts` installs {' '.join(packages)})"
    try:
        with Hosts(1, root) as hosts:
            hosts.run("h0", ["true"])
            with hosts.lossy("h0", 1), hosts.limited("h0", "20mbit"):
                pass
    except AssertionError as error:
        return f"this kernel or container does not let it: {error}"
    return None
