"""Worker processes by forking one that has imported torch, instead of importing it in each.

Every Ray worker imports torch first, which is most of what a search of small models on one machine waits for. Here one
process imports it once (the *nursery*, started by the driver). Ray is told, by ``py_executable``, to start its workers
with this module, which passes arguments, environment and standard streams on to the nursery and waits for the fork of
it that does the work. The fork ends when whoever waits for it is killed, and the other way round.

Only for the cluster that Shoal starts on its own machine. Where no nursery answers, the worker starts as usual.
"""

import json
import os
import socket
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:  # what is imported up here is paid for by every worker
    import subprocess
    from collections.abc import Iterator

ANSWER_SEC = 60.0
"""How long a worker waits for a nursery that is still importing."""

_nurseries: "dict[str, subprocess.Popen[bytes]]" = {}
"""That this process has started, by the path of its socket: one at most."""

LENGTH = struct.Struct("!Q")
PRELOADED = (
    "torch._dynamo",  # which every optimizer imports
    "torchvision",
    "pandas",
    "pyarrow.fs",
    "jsonschema",
    "requests",
    "rich.console",
    "shoal.execute",
    "shoal.quality.monitor",
    "shoal_ray.tensorboard",
)
"""Everything heavy but Ray, whose library does not survive a fork."""


# --- the driver -------------------------------------------------------------------------------------------------------


def begin() -> str:
    """Start the nursery, unless there is one; return what Ray shall start its workers with.

    It ends with this process and the last worker, whichever is later.
    """
    import shlex
    import subprocess
    import tempfile
    from pathlib import Path

    if not _nurseries:
        path = str(Path(tempfile.mkdtemp(prefix="shoal-"), "nursery"))
        _nurseries[path] = subprocess.Popen(
            [sys.executable, "-m", "shoal_ray.warm", "--serve", path],
            stdin=subprocess.PIPE,  # never written to: its end tells of this process's
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the driver's to hear
        )
    return shlex.join([sys.executable, "-m", "shoal_ray.warm", "--by", next(iter(_nurseries))])


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
        line.recv(LENGTH.size)  # the pid: from here on there is a worker
        line.settimeout(None)
    except OSError:
        os.execv(sys.executable, [sys.executable, *arguments])
    answer = line.recv(LENGTH.size)
    os._exit(LENGTH.unpack(answer)[0] & 0xFF if len(answer) == LENGTH.size else 1)


# --- the nursery ------------------------------------------------------------------------------------------------------


def preload() -> None:
    """Import what workers need. Nothing of it may start a thread: a fork has none but its own."""
    import gc
    from importlib import import_module

    for name in PRELOADED:
        import_module(name)
    gc.collect()
    gc.freeze()


def serve(path: str) -> None:
    """Fork workers for whoever connects to ``path``, until standard input ends and no worker is left."""
    import selectors
    import shutil
    import signal
    from pathlib import Path

    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o077)  # nobody else on this machine may ask for processes
    listener.bind(path)
    os.umask(before)
    listener.listen(128)
    preload()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ, None)
    selector.register(0, selectors.EVENT_READ, None)
    children: dict[int, tuple[int, socket.socket]] = {}  # by pidfd
    driver_lives = True
    while driver_lives or children:
        for key, _ in selector.select():
            if key.fileobj == 0:
                driver_lives = False
                selector.unregister(0)
                selector.unregister(listener)
                listener.close()
            elif key.fileobj is listener and driver_lives:
                line, _ = listener.accept()
                if pid := _fork(line, listener):
                    watch = os.pidfd_open(pid)
                    children[watch] = pid, line
                    selector.register(watch, selectors.EVENT_READ, None)
                    selector.register(line, selectors.EVENT_READ, watch)
            elif key.data is None and key.fileobj is not listener:  # a worker has ended
                watch = key.fd
                if watch in children:
                    pid, line = children.pop(watch)
                    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    selector.unregister(watch)
                    selector.unregister(line)
                    os.close(watch)
                    _tell(line, status)
            elif key.data in children:  # whoever waited for it was killed: it would have died itself
                os.kill(children[key.data][0], signal.SIGKILL)

    shutil.rmtree(Path(path).parent, ignore_errors=True)


def _tell(line: socket.socket, status: int) -> None:
    with suppress(OSError), line:
        line.sendall(LENGTH.pack(status if status >= 0 else 128 - status))


def _fork(line: socket.socket, listener: socket.socket) -> int | None:
    """Fork a worker for a request; return its pid, or None where the request broke off."""
    try:
        line.settimeout(ANSWER_SEC)
        head, streams, _, _ = socket.recv_fds(line, LENGTH.size, 3)
        request = json.loads(b"".join(_read(line, LENGTH.unpack(head)[0])))
    except (OSError, ValueError, struct.error):
        line.close()
        return None
    pid = os.fork()
    if pid == 0:
        listener.close()
        line.close()
        _work(request, streams)
    for stream in streams:
        os.close(stream)
    with suppress(OSError):  # who asked may be gone; then its line ends, and so does the fork
        line.sendall(LENGTH.pack(pid))
    return pid


def _read(line: socket.socket, num_bytes: int) -> "Iterator[bytes]":
    while num_bytes:
        piece = line.recv(min(num_bytes, 1 << 16))
        if not piece:
            raise OSError("broken off")
        num_bytes -= len(piece)
        yield piece


def _work(request: dict[str, object], streams: list[int]) -> NoReturn:
    """Be the worker: as if this process had been started with the request's arguments."""
    import runpy
    import signal
    import traceback

    code = 1
    try:
        os.setpgid(0, 0)  # Ray ends a worker with its whole process group
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        environment, arguments = request["environment"], request["arguments"]
        assert isinstance(environment, dict)
        assert isinstance(arguments, list)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(str(request["directory"]))
        new = [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part and part not in sys.path]
        sys.path[:0] = new
        if threads := environment.get("OMP_NUM_THREADS"):
            import torch

            torch.set_num_threads(int(threads))
        while arguments[0].startswith("-"):  # the interpreter's own, e.g. -u
            arguments.pop(0)
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        import atexit

        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    else:
        stand_in(sys.argv[2], sys.argv[3:])
