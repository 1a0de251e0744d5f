"""Workers by forking: as if each had been started on its own, and never left behind."""

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.processes import DEADLINE_SEC, wait_until

STAND_IN = [sys.executable, "-m", "shoal_ray.warm"]


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("nursery") / "socket"
    process = subprocess.Popen(
        [*STAND_IN, "--serve", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    wait_until(path.exists, process)
    yield path
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(DEADLINE_SEC) == 0
    assert not path.exists()


def start(nursery: Path, script: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    """Start a worker as Ray does."""
    return subprocess.Popen(
        [*STAND_IN, "--by", str(nursery), "-u", str(script), *words],
        env=os.environ | environment,
        cwd=script.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def write(folder: Path, text: str) -> Path:
    script = folder / "work.py"
    script.write_text(text)
    return script


def test_a_fork_is_like_a_process_of_its_own(nursery: Path, tmp_path: Path) -> None:
    script = write(
        tmp_path,
        "import os, sys\n"
        "print(sys.argv[1:], os.environ['ASKED'], os.getcwd(), __name__, os.getpgid(0) == os.getpid())\n"
        "print('torch' in sys.modules, 'ray' in sys.modules)\n"
        "print('said', file=sys.stderr)\n"
        "sys.exit(7)\n",
    )
    process = start(nursery, script, "one", "two words", ASKED="this")
    out, err = process.communicate(timeout=DEADLINE_SEC)
    assert out.splitlines() == [f"['one', 'two words'] this {tmp_path} __main__ True", "True False"]
    assert (err, process.returncode) == ("said\n", 7)


def test_an_error_is_told_and_is_no_success(nursery: Path, tmp_path: Path) -> None:
    process = start(nursery, write(tmp_path, "raise RuntimeError('lost')\n"))
    _, err = process.communicate(timeout=DEADLINE_SEC)
    assert err.endswith("RuntimeError: lost\n")
    assert process.returncode == 1


def test_what_was_left_for_the_end_is_done(nursery: Path, tmp_path: Path) -> None:
    process = start(nursery, write(tmp_path, "import atexit\natexit.register(print, 'left')\n"))
    assert process.communicate(timeout=DEADLINE_SEC) == ("left\n", "")
    assert process.returncode == 0


SLEEPER = "import os, signal\nprint(os.getpid(), flush=True)\nsignal.pause()\n"


def test_who_is_waited_for_dies_with_who_waits(nursery: Path, tmp_path: Path) -> None:
    process = start(nursery, write(tmp_path, SLEEPER))
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    watch = os.pidfd_open(worker)
    process.kill()
    assert select.select([watch], [], [], DEADLINE_SEC)[0] == [watch]
    os.close(watch)
    process.communicate()


def test_who_waits_ends_as_the_worker_does(nursery: Path, tmp_path: Path) -> None:
    process = start(nursery, write(tmp_path, SLEEPER))
    assert process.stdout is not None
    os.kill(int(process.stdout.readline()), signal.SIGKILL)
    process.communicate(timeout=DEADLINE_SEC)
    assert process.returncode == 128 + signal.SIGKILL


def test_a_request_that_breaks_off_harms_nobody(nursery: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(nursery))
        line.sendall(b"\0\0")
    process = start(nursery, write(tmp_path, "print('served')\n"))
    assert process.communicate(timeout=DEADLINE_SEC)[0] == "served\n"


def test_without_a_nursery_the_worker_starts_as_usual(tmp_path: Path) -> None:
    script = write(tmp_path, "import sys\nprint(sys.argv[1:], 'torch' in sys.modules)\n")
    process = start(tmp_path / "nobody", script, "word")
    assert process.communicate(timeout=DEADLINE_SEC)[0] == "['word'] False\n"
    assert process.returncode == 0


def test_the_nursery_has_no_thread_that_a_fork_would_miss(nursery: Path, tmp_path: Path) -> None:
    process = start(nursery, write(tmp_path, "import threading\nprint(threading.active_count())\n"))
    assert process.communicate(timeout=DEADLINE_SEC)[0] == "1\n"


def test_a_process_has_one_nursery_and_hands_it_to_nobody(tmp_path: Path) -> None:
    ask = "from shoal_ray.warm import begin; print(begin() == begin(), begin().split()[-1])"
    mine, inner = (
        subprocess.run([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
        for text in (ask, f"import subprocess, sys; {ask}; subprocess.run([sys.executable, '-c', {ask!r}], check=True)")
    )
    assert mine[0] == "True"
    assert inner[0::2] == ["True", "True"]
    assert len({mine[1], *inner[1::2]}) == 3
