"""Workers by forking: as if each had been started on its own, and never left behind."""

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.processes import DEADLINE_SEC, wait_until

from shoal_ray.warm import LENGTH, fingerprint, private_folder, runtime_env

STAND_IN = [sys.executable, "-m", "shoal_ray.warm"]
NURSERY = [sys.executable, "-m", "shoal_ray.nursery"]


def nursery_at(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*NURSERY, "--of-driver", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    wait_until(path.exists, process)
    return process


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("nursery") / "socket"
    process = nursery_at(path)
    yield path
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(DEADLINE_SEC) == 0
    assert not path.exists()


def start(
    nursery: Path | None, script: Path, *words: str, stdin: int | None = None, **environment: str
) -> subprocess.Popen[str]:
    """Start a worker as Ray does: by a nursery, or by that of its node."""
    by = ["--of-node"] if nursery is None else ["--by", str(nursery)]
    return subprocess.Popen(
        [*STAND_IN, *by, "-u", str(script), *words],
        env=os.environ | environment,
        cwd=script.parent,
        stdin=stdin,
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


# How many descriptors the nursery has open, once it holds the one of this worker: then the request has been served.
OPEN = """import os, pathlib
nursery = pathlib.Path(f"/proc/{os.getppid()}/fdinfo")
def held():
    for info in nursery.iterdir():
        try:
            yield info.read_text()
        except FileNotFoundError:
            pass  # closed meanwhile
while not any(f"Pid:\\t{os.getpid()}\\n" in info for info in held()):
    pass
print(len(list(nursery.iterdir())))
"""
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


@pytest.mark.parametrize("sent", [b"", b"\0\0", LENGTH.pack(100) + b"{", LENGTH.pack(2) + b"{]"])
def test_requests_that_break_off_cost_no_descriptors(nursery: Path, tmp_path: Path, sent: bytes) -> None:
    (count,) = start(nursery, write(tmp_path, OPEN)).communicate(timeout=DEADLINE_SEC)[0].split()
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(nursery))
            if sent:
                socket.send_fds(line, [sent], [0, 1, 2])
    assert start(nursery, write(tmp_path, OPEN)).communicate(timeout=DEADLINE_SEC)[0].split() == [count]


def test_a_fork_holds_nothing_of_its_siblings(nursery: Path, tmp_path: Path) -> None:
    script = write(tmp_path, SLEEPER)
    siblings = [start(nursery, script) for _ in range(2)]
    for sibling in siblings:
        assert sibling.stdout is not None
        sibling.stdout.readline()
    held = "import os\nprint([os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if int(n) > 2])\n"
    script.write_text(held.replace("if int(n) > 2", "if int(n) > 2 and os.path.exists(f'/proc/self/fd/{n}')"))
    out, _ = start(nursery, script).communicate(timeout=DEADLINE_SEC)
    assert "socket:" not in out
    assert "pidfd" not in out
    for sibling in siblings:
        sibling.kill()
        sibling.communicate()


def test_a_nursery_that_is_killed_takes_no_worker_along(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    process = nursery_at(tmp_path / "own" / "socket")
    waits = "import os, sys\nprint(os.getpid(), flush=True)\nprint(sys.stdin.readline(), end='')\n"
    workers = [start(tmp_path / "own" / "socket", write(tmp_path, waits), stdin=subprocess.PIPE) for _ in range(2)]
    for worker in workers:
        assert worker.stdout is not None
        worker.stdout.readline()
    process.kill()
    process.communicate(timeout=DEADLINE_SEC)
    for number, worker in enumerate(workers):  # each goes on, and whoever waits for it ends when it does
        assert worker.poll() is None
        assert worker.communicate(f"{number}\n", timeout=DEADLINE_SEC)[0] == f"{number}\n"
    assert start(tmp_path / "own" / "socket", write(tmp_path, "print('alone')\n")).communicate()[0] == "alone\n"


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


# --- the nursery of a node --------------------------------------------------------------------------------------------

RAYLET = """
import subprocess, sys
for line in sys.stdin:
    subprocess.run(eval(line))
    print("done", flush=True)
"""


class Raylet:
    """Whose children the workers of a node are: starts what it is told to, one after the other."""

    def __init__(self, temporary: Path) -> None:
        self.folder = temporary / f"shoal-{os.getuid()}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", RAYLET],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(temporary)},
            cwd=temporary,
        )

    def run(self, *command: str) -> str:
        """Run a command to its end; return the lines that it wrote."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(list(command), file=self.process.stdin, flush=True)
        said = ""
        while (line := self.process.stdout.readline()) != "done\n":
            assert line
            said += line
        return said


def nurseries() -> set[int]:
    """Return the nurseries of nodes on this machine."""
    found = set()
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdigit() and b"shoal_ray.nursery\0--of-node" in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
    return found


@pytest.fixture
def raylet() -> Iterator[Raylet]:
    with tempfile.TemporaryDirectory(prefix="shoal-", ignore_cleanup_errors=True) as short:  # for sockets in it
        raylet = Raylet(Path(short))
        yield raylet
        raylet.process.kill()
        raylet.process.communicate()


def test_a_nodes_nursery_is_started_once_and_ends_with_its_raylet(raylet: Raylet, tmp_path: Path) -> None:
    script = write(tmp_path, "import os, sys\nprint('torch' in sys.modules, os.getppid())\n")
    word = [*STAND_IN, "--of-node", str(script)]
    (first, parent), (second, again) = (raylet.run(*word).split() for _ in range(2))
    assert (first, second) == ("True", "True")
    assert parent == again
    watch = os.pidfd_open(int(parent))
    folder = raylet.folder
    assert folder.stat().st_mode & 0o777 == 0o700
    raylet.process.kill()
    assert select.select([watch], [], [], DEADLINE_SEC)[0] == [watch]
    os.close(watch)
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_workers_of_a_node_end_with_its_raylet_even_stopped_ones(raylet: Raylet, tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = write(
        tmp_path,
        f"import os\nopen({str(told)!r}, 'w').write(f'{{os.getpid()}} ')\nos.kill(os.getpid(), {signal.SIGSTOP:d})\n",
    )
    assert raylet.process.stdin is not None
    print([*STAND_IN, "--of-node", str(script)], file=raylet.process.stdin, flush=True)
    wait_until(lambda: told.exists() and told.read_text().endswith(" "), raylet.process)
    watch = os.pidfd_open(int(told.read_text()))
    raylet.process.kill()
    assert select.select([watch], [], [], DEADLINE_SEC)[0] == [watch]
    os.close(watch)


def test_a_nursery_may_be_asked_for_before_it_is_needed(raylet: Raylet, tmp_path: Path) -> None:
    before = nurseries()
    raylet.run(sys.executable, "-c", "from shoal_ray.warm import hatch; hatch()")  # no child of whoever asked
    (hatched,) = nurseries() - before
    said = raylet.run(*STAND_IN, "--of-node", str(write(tmp_path, "import os\nprint(os.getppid())\n")))
    assert said == f"{hatched}\n"


def test_another_state_of_the_code_has_another_nursery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = tmp_path / "shoal" / "code.py"
    code.parent.mkdir()
    code.write_text("one = 1\n")
    (tmp_path / "shoal" / "__init__.py").touch()
    before = fingerprint(os.getpid())
    assert fingerprint(os.getpid()) == before
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shoal")
    brought = fingerprint(os.getpid())
    code.write_text("one = 1 + 1\n")
    edited = fingerprint(os.getpid())
    assert len({before, brought, edited, fingerprint(os.getppid())}) == 4


def test_a_folder_that_others_may_use_is_not_used(raylet: Raylet, tmp_path: Path) -> None:
    raylet.folder.mkdir()
    raylet.folder.chmod(0o777)
    script = write(tmp_path, "import sys\nprint('torch' in sys.modules)\n")
    assert raylet.run(*STAND_IN, "--of-node", str(script)) == "False\n"
    assert list(raylet.folder.iterdir()) == []


def test_the_private_folder_is_neither_a_link_nor_somebody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / f"shoal-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="of this user's alone"):
        private_folder()


def test_workers_start_as_usual_where_nodes_differ_or_the_job_says_how() -> None:
    assert runtime_env(["/a b/python", "/a b/python"], []) == {
        "py_executable": "'/a b/python' -m shoal_ray.warm --of-node"
    }
    assert runtime_env(["/one/python", "/two/python"], []) == {}
    assert runtime_env(["/one/python"], ["pip", "env_vars"]) == {}
