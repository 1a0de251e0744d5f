"""A dialogue with each machine of a launcher's file, over ssh and all at once: what it has, and whom it reaches."""

import json
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shoal_ray.launch import probe
from shoal_ray.launch.cluster_file import ClusterFile
from shoal_ray.launch.ssh import Ssh, last_line, ways

HEAD_PORTS = (6379, 8265, 10001, 52365)
WORKER_PORTS = (52365,)
"""What Ray listens on wherever it runs, besides ports that it chooses."""

PATIENCE_SEC = 60
"""For a machine to be reached and to answer; a driver of GPUs may take long to wake."""

AT_ONCE = 8
"""Logins: from the tenth that has not yet said who it is on, sshd turns some away (MaxStartups); all pass the head."""

BEGIN = """exec bash --login -i -c 'source ~/.bashrc; exec python3 -u -c "import json; exec(json.loads(input()))"'"""
"""As Ray's launcher runs its commands: what .bashrc adds to PATH decides which python3 is found."""


def visit_all(file: ClusterFile) -> list["Visit"]:
    """Log in to every machine of a file, the head first, and look round.

    Raises:
        ClusterError: no ssh here.
    """
    with ways(file) as ssh, ThreadPoolExecutor(len(file.addresses)) as pool:
        logins = threading.Semaphore(AT_ONCE)
        visits = [
            Visit(ssh, address, HEAD_PORTS if n == 0 else WORKER_PORTS) for n, address in enumerate(file.addresses)
        ]
        try:
            list(pool.map(lambda visit: visit.arrive(logins), visits))
            there = [visit for visit in visits if visit.facts]
            ports = [(visit.address, visit.facts["listening"]) for visit in there]
            list(pool.map(lambda visit: visit.look_round(ports), there))
        finally:
            for visit in visits:
                visit.leave()
    return visits


class Visit:
    """A dialogue with the probe on one machine.

    Attributes:
        address: the machine's.
        facts: what it has; empty while, or if, it is not reached.
        trouble: why it is not.
        skew_sec: how far its clock is ahead of this one, and how far that may be off.
        unreached: what each other machine is to it: None, or why it cannot reach that.
    """

    def __init__(self, ssh: Ssh, address: str, ports: Sequence[int]) -> None:
        self.address = address
        self.facts: dict[str, Any] = {}
        self.trouble = ""
        self.skew_sec = (0.0, 0.0)
        self.unreached: dict[str, str | None] = {}
        self._ssh = ssh
        self._ports = ports
        self._process: subprocess.Popen[str] | None = None

    def arrive(self, logins: threading.Semaphore) -> None:
        """Log in and ask what there is."""
        with logins:
            self._process = self._ssh.popen(self.address, BEGIN)
            with _limit(self._process):
                self._say(Path(probe.__file__).read_text())
                ready = self._hear()
        if ready:
            with _limit(self._process):
                asked = time.time()
                self._say({"ports": list(self._ports)})
                now = self._hear() or {"now": asked}
                answered = time.time()
            self.skew_sec = (now["now"] - (asked + answered) / 2, (answered - asked) / 2)
            with _limit(self._process):
                self.facts = self._hear() or {}
        if not self.facts:
            self._process.kill()
            self.trouble = last_line(self._process.communicate()[1]) or f"no answer in {PATIENCE_SEC} s"

    def look_round(self, ports: Sequence[tuple[str, int]]) -> None:
        """Ask which of the other machines it reaches."""
        assert self._process is not None
        with _limit(self._process):
            self._say([pair for pair in ports if pair[0] != self.address])
            heard = self._hear()
        silent: dict[str, str | None] = {address: "did not say" for address, _ in ports if address != self.address}
        self.unreached = silent if heard is None else heard  # a machine that is alone says {}

    def leave(self) -> None:
        """End the dialogue, and with it the probe."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    def _say(self, words: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # its last words tell why
            self._process.stdin.write(json.dumps(words) + "\n")
            self._process.stdin.flush()

    def _hear(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(probe.MARK):
                return json.loads(line.removeprefix(probe.MARK))
        return None


@contextmanager
def _limit(process: subprocess.Popen[str]) -> Iterator[None]:
    """End a process that does not come to the end of the block in time, so that nothing waits for it."""
    timer = threading.Timer(PATIENCE_SEC, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
