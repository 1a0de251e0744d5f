"""Worker processes by forking one that has imported torch, instead of importing it in each.

Every worker imports torch first, which is most of what a start waits for: that of a search of small models, that of a
run whose workers were lost. Here one process of each node imports it once (the *nursery*, see ``nursery.py``). Ray is
told, by ``py_executable``, to start its workers with this module, which passes arguments, environment and standard
streams on to the nursery and waits for the fork of it that does the work. The fork ends when whoever waits for it is
killed, and the other way round.

On the cluster that Shoal starts on its own machine the driver starts the nursery, which ends with it. On any other
cluster a node's nursery belongs to a user and to the very code that it has imported; who needs it first starts it, and
it ends with its raylet, or when nobody has asked for it for some minutes. Where none answers, the worker starts as
usual.
"""

import json
import os
import select
import socket
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:  # what is imported up here is paid for by every worker
    import subprocess
    from collections.abc import Sequence
    from pathlib import Path

ANSWER_SEC = 60.0
"""How long a worker waits for a nursery that is still importing."""
STATUS_SEC = 5.0
"""How long the status of a worker that has ended may be on its way."""

_nurseries: "dict[str, subprocess.Popen[bytes]]" = {}
"""That this process has started, by the path of its socket: one at most."""

LENGTH = struct.Struct("!Q")
OTHER_PYTHONS = {"pip", "uv", "conda", "container", "image_uri", "py_executable"}
"""Keys of a runtime environment that say which Python runs a worker."""


# --- the driver -------------------------------------------------------------------------------------------------------


def begin() -> str:
    """Start the nursery of a cluster here, unless there is one; return what Ray shall start its workers with.

    It ends with this process and the last worker, whichever is later.
    """
    import shlex
    import subprocess
    import tempfile
    from pathlib import Path

    if not _nurseries:
        path = str(Path(tempfile.mkdtemp(prefix="shoal-"), "nursery"))
        _nurseries[path] = subprocess.Popen(
            [sys.executable, "-m", "shoal_ray.nursery", "--of-driver", path],
            stdin=subprocess.PIPE,  # never written to: its end tells of this process's
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the driver's to hear
        )
    return shlex.join([sys.executable, "-m", "shoal_ray.warm", "--by", next(iter(_nurseries))])


def runtime_env(pythons: "Sequence[str]", job: "Sequence[str]") -> dict[str, str]:
    """Return what has the workers of somebody else's cluster start from the nursery of their node.

    Args:
        pythons: that run the workers of each node now. Where they differ, workers start as usual.
        job: keys of the runtime environment that the workers inherit.
    """
    import shlex

    if len(set(pythons)) != 1 or OTHER_PYTHONS & set(job):
        return {}
    return {"py_executable": shlex.join([pythons[0], "-m", "shoal_ray.warm", "--of-node"])}


# --- the process that Ray starts --------------------------------------------------------------------------------------


def stand_in(path: str, arguments: list[str]) -> NoReturn:
    """Have the nursery at ``path`` fork a worker with these arguments, wait for it, and end as it ends."""
    try:
        line = socket.socket(socket.AF_UNIX)
        line.settimeout(ANSWER_SEC)
        line.connect(path)
        request = {"arguments": arguments, "environment": dict(os.environ), "directory": os.getcwd()}  # noqa: PTH109  # see the imports
        payload = json.dumps(request).encode()
        socket.send_fds(line, [LENGTH.pack(len(payload))], [0, 1, 2])
        line.sendall(payload)
        (worker,) = LENGTH.unpack(line.recv(LENGTH.size))  # the pid: from here on there is a worker
    except (OSError, struct.error):
        start_as_usual(arguments)
    with suppress(ProcessLookupError):  # it has ended already
        worker = os.pidfd_open(worker)
        ended: list[int] = [line.fileno(), worker]
        select.select(ended, [], [])
        line.settimeout(STATUS_SEC)
    answer = b""
    with suppress(OSError):
        answer = line.recv(LENGTH.size)
    if len(answer) == LENGTH.size:
        os._exit(LENGTH.unpack(answer)[0] & 0xFF)
    with suppress(OSError):  # the nursery is gone, which is no reason to give up its worker
        select.select([worker], [], [])
    os._exit(1)


def start_as_usual(arguments: list[str]) -> NoReturn:
    """Become the worker, without a nursery."""
    os.execv(sys.executable, [sys.executable, *arguments])


# --- the nursery of a node --------------------------------------------------------------------------------------------


def nursery_of_node(raylet: int) -> str:
    """Return the path of the nursery of this user, this code and this raylet, started if there is none.

    Raises:
        OSError: there cannot be one: somebody else has made its folder, or a path is too long.
    """
    import fcntl
    import subprocess

    folder = private_folder()
    path = folder / fingerprint(raylet)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two that find none, one starts it
        if not knock(path):
            with suppress(FileNotFoundError):
                path.unlink()
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
                listener.listen(128)  # from now on, who connects is served when everything is imported
                subprocess.Popen(
                    [sys.executable, "-m", "shoal_ray.nursery", "--of-node", str(listener.fileno()), str(raylet)],
                    pass_fds=[listener.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,  # not to end with the worker that needed it first
                )
    return str(path)


def hatch() -> None:
    """Start the nursery of this node, unless there is one, from a worker that was started without; or keep it alive."""
    import subprocess

    # By a process in between: Ray ends the children of a worker with it.
    command = [sys.executable, "-m", "shoal_ray.warm", "--hatch", str(os.getppid())]
    subprocess.run(command, stdin=subprocess.DEVNULL, check=False)


def knock(path: "Path") -> bool:
    """Tell whether somebody listens at a socket."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(ANSWER_SEC)
        try:
            line.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True


def private_folder() -> "Path":
    """Return a folder that nobody else can use, made if need be.

    Raises:
        PermissionError: somebody else has made it, or may write into it.
    """
    import stat
    import tempfile
    from pathlib import Path

    folder = Path(tempfile.gettempdir(), f"shoal-{os.getuid()}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder of this user's alone")
    return folder


def fingerprint(raylet: int) -> str:
    """Return a name for all that a worker is made of: whose raylet, which Python, which code in which state.

    A job that brings its own code along, and a source tree that was edited since, each get a nursery of their own.
    """
    import hashlib
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec
    from pathlib import Path

    parts: list[object] = [raylet, _started(raylet), sys.executable, sys.version, *sys.path]
    for package in ("torch", "ray", "shoal"):
        with suppress(PackageNotFoundError):
            parts.append(version(package))
    for package in ("shoal", "shoal_ray"):
        spec = find_spec(package)
        for root in (spec and spec.submodule_search_locations) or ():
            for file in sorted(Path(root).rglob("*.py")):
                state = file.stat()
                parts += [file, state.st_mtime_ns, state.st_size]
    # What libraries read when they are imported.
    parts += [item for item in sorted(os.environ.items()) if item[0].startswith(("LD_", "TORCH", "PYTORCH"))]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _started(process: int) -> str:
    """Return when a process was started, in ticks since the machine was: no two of one number have it in common."""
    from pathlib import Path

    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]


if __name__ == "__main__":
    if sys.argv[1] == "--by":
        stand_in(sys.argv[2], sys.argv[3:])
    if sys.argv[1] == "--hatch":
        nursery_of_node(int(sys.argv[2]))
        sys.exit()
    try:
        found = nursery_of_node(os.getppid())  # Ray's raylet: bash, which it starts, becomes this process
    except OSError:
        start_as_usual(sys.argv[2:])
    stand_in(found, sys.argv[2:])
