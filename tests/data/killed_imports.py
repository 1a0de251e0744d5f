"""Kill an import before each of its calls to the disk in turn, go on from there, and compare what comes out.

Run by test_pipeline. Prints how many calls there were, and after how many of them an import went on from a checkpoint.
"""

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from generated_source import Generated  # type: ignore[import-not-found]  # beside this script

from shoal.data.importers import run_import
from shoal.data.importers.partial import Command
from shoal.data.importers.splitting import Shares

SOURCE = Generated({"train": 32, "test": 5})
COMMAND = Command("generated", "/somewhere", {}, {})
CALLS = [(os, "fsync"), (os, "truncate"), (shutil, "rmtree")] + [
    (Path, name) for name in ("rename", "replace", "unlink", "mkdir", "open")
]


def make(out: Path) -> list[str]:
    """Import, and return what the user is told."""
    said: list[str] = []
    shares = Shares({"train": 0.8, "val": 0.2})
    run_import(SOURCE, out, split=shares, command=COMMAND, rows_per_block=4, shard_bytes=160, notice=said.append)
    return said


def attempt(out: Path, killed_at: int) -> bool:
    """Import in a process of its own, which kills itself before the so-manieth call; return whether it was killed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            numbers = count(1)
            for holder, name in CALLS:
                setattr(holder, name, _lethal(getattr(holder, name), numbers, killed_at))
            make(out)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL), f"{out}: {status}"
    return status != 0


def _lethal(call: Callable[..., Any], numbers: Any, killed_at: int | None) -> Callable[..., Any]:
    def wrapped(*args: Any, **more: Any) -> Any:
        if next(numbers) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **more)

    return wrapped


def main(folder: Path) -> None:
    os.fsync = lambda fd: None  # a kill, unlike a power cut, loses nothing that was written
    make(folder / "whole")
    expected = {file.name: file.read_bytes() for file in (folder / "whole").iterdir()}
    resumed = 0
    for killed_at in count(1):
        out = folder / "set"
        was_killed = attempt(out, killed_at)
        if was_killed and not out.exists():
            attempt(out, killed_at // 2 + 1)  # and the one that goes on as well
        if not out.exists():
            resumed += any("going on" in text for text in make(out))
        assert {file.name: file.read_bytes() for file in out.iterdir()} == expected, killed_at
        shutil.rmtree(out)
        if not was_killed:
            break
        shutil.rmtree(folder / ".set.partial", ignore_errors=True)  # left where the kill came after the last rename
    print(killed_at, resumed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
