"""Kill a repair before each of its calls to the disk in turn, look at what is there, and repair it again.

Run by test_repair with the damaged data set and its copy. Prints how many calls there were.
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

from shoal.data.repair import repair
from shoal.data.verify import verify

CALLS = [(os, "fsync"), (os, "open"), (shutil, "rmtree")] + [
    (Path, name) for name in ("replace", "unlink", "mkdir", "open")
]


def attempt(path: Path, copy: Path, killed_at: int) -> bool:
    """Repair in a process of its own, which kills itself before the so-manieth call; return whether it was."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            numbers = count(1)
            for holder, name in CALLS:
                # A kill, unlike a power cut, loses nothing that was written.
                call = (lambda handle: None) if name == "fsync" else getattr(holder, name)
                setattr(holder, name, _lethal(call, numbers, killed_at))
            assert not repair(path, copy).left
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL), status
    return status != 0


def _lethal(call: Callable[..., Any], numbers: Any, killed_at: int) -> Callable[..., Any]:
    def wrapped(*words: Any, **options: Any) -> Any:
        if next(numbers) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*words, **options)

    return wrapped


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def main() -> None:
    damaged, copy = map(Path, sys.argv[1:])
    before, whole = content(damaged), content(copy)
    path = damaged.with_name("attempt")
    for number in count(1):
        shutil.copytree(damaged, path)
        was_killed = attempt(path, copy, number)
        now = {name: data for name, data in content(path).items() if not name.startswith(".")}
        for name, data in now.items():
            assert data in (before.get(name), whole[name]), name
        assert before.keys() <= now.keys()
        if was_killed:
            repair(path, copy)
        assert content(path) == whole, number  # nothing else is left either
        assert verify(path) == []
        shutil.rmtree(path)
        if not was_killed:
            print(number)
            return


main()
