"""The real command line in processes of its own: started, watched, ended, and looked into."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

DEADLINE_SEC = 240


def start(*words: str | Path, launcher: Sequence[str] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "shoal_ray.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "COLUMNS": "200"},
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    try:
        said = process.communicate(timeout=DEADLINE_SEC)[0]
    finally:
        process.kill()
    assert process.returncode == code, said
    assert "Traceback" not in said
    return said


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_SEC
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)  # between two looks; nothing relies on its length


def descendants(driver: int) -> dict[int, bytes]:
    """Return the command lines of all processes that descend from one."""
    parents: dict[int, int] = {}
    titles: dict[int, bytes] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                titles[int(folder.name)] = (folder / "cmdline").read_bytes()
            except OSError:
                continue  # ended meanwhile

    def descends(pid: int) -> bool:
        while pid in parents and pid != driver:
            pid = parents[pid]
        return pid == driver

    return {pid: title for pid, title in titles.items() if descends(pid)}
