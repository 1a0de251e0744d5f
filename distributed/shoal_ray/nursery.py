"""The nursery: a process that has imported what workers need, and forks one for whoever connects (see ``warm.py``)."""

import json
import os
import selectors
import shutil
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from shoal_ray.warm import ANSWER_SEC, LENGTH

IDLE_SEC = 600.0
"""After so long without a worker or a request, a node's nursery ends."""

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


def preload() -> None:
    """Import what workers need. Nothing of it may start a thread: a fork has none but its own."""
    import gc
    from importlib import import_module

    for name in PRELOADED:
        import_module(name)
    gc.collect()
    gc.freeze()


class Nursery:
    """Forks workers until its owner is gone or nobody needs it any more.

    Args:
        listener: who connects to it is served.
        owner: becomes readable when the owner has ended: no worker is forked from then on.
        idle_sec: without a worker or a request, after which it ends too; None: never.
        orphans: whether workers may go on without the owner.
    """

    def __init__(self, listener: socket.socket, owner: int, *, idle_sec: float | None, orphans: bool) -> None:
        self._listener = listener
        self._owner = owner
        self._idle_sec = idle_sec
        self._orphans = orphans
        self._children: dict[int, tuple[int, socket.socket]] = {}
        """Pid and line of each worker, by its handle (pidfd)."""
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, self._serve)
        self._selector.register(owner, selectors.EVENT_READ, self._orphaned)
        self._open = True
        self._asked_at = time.monotonic()

    def run(self) -> None:
        """Serve until it is over."""
        while self._open or self._children:
            timeout = None
            if self._idle_sec is not None and not self._children:
                timeout = self._asked_at + self._idle_sec - time.monotonic()
                if timeout <= 0:
                    return
            for key, _ in self._selector.select(timeout):
                # Not closed by the one before, nor its number in use again.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()

    def _serve(self) -> None:
        self._asked_at = time.monotonic()
        line, _ = self._listener.accept()
        pid = self._fork(line)
        if pid is None:
            line.close()
            return
        watch = os.pidfd_open(pid)
        self._children[watch] = pid, line
        self._selector.register(watch, selectors.EVENT_READ, lambda: self._ended(watch))
        self._selector.register(line, selectors.EVENT_READ, lambda: self._deserted(watch))

    def _orphaned(self) -> None:
        """Fork no more: the owner is gone."""
        self._open = False
        self._selector.unregister(self._owner)
        self._selector.unregister(self._listener)
        self._listener.close()
        if not self._orphans:
            for pid, _ in self._children.values():
                os.kill(pid, signal.SIGKILL)

    def _ended(self, watch: int) -> None:
        """Tell of a worker's end."""
        pid, line = self._children.pop(watch)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self._selector.unregister(watch)
        with suppress(KeyError):
            self._selector.unregister(line)
        os.close(watch)
        with suppress(OSError), line:
            line.sendall(LENGTH.pack(status if status >= 0 else 128 - status))
        self._asked_at = time.monotonic()

    def _deserted(self, watch: int) -> None:
        """End a worker for whom nobody waits any more: that was killed, as the worker itself would have been."""
        pid, line = self._children[watch]
        self._selector.unregister(line)
        os.kill(pid, signal.SIGKILL)

    def _fork(self, line: socket.socket) -> int | None:
        """Fork a worker for a request; return its pid, or None where the request broke off."""
        streams: list[int] = []
        try:
            line.settimeout(ANSWER_SEC)
            head, streams, _, _ = socket.recv_fds(line, LENGTH.size, 3)
            request = json.loads(b"".join(_read(line, LENGTH.unpack(head)[0])))
            pid = os.fork()
            if pid == 0:
                self._forget(line)
                _work(request, streams)
        except (OSError, ValueError, struct.error):
            return None
        finally:
            for stream in streams:
                os.close(stream)
        with suppress(OSError):  # who asked may be gone; then its line ends, and so does the fork
            line.sendall(LENGTH.pack(pid))
        return pid

    def _forget(self, line: socket.socket) -> None:
        """Close, in a fork, what belongs to the nursery: an open line to a sibling would seem to come from it."""
        held = [key.fd for key in self._selector.get_map().values() if key.fd > 2]
        self._selector.close()
        for handle in (*held, line.detach()):
            os.close(handle)


def _read(line: socket.socket, num_bytes: int) -> Iterator[bytes]:
    while num_bytes:
        piece = line.recv(min(num_bytes, 1 << 16))
        if not piece:
            raise OSError("broken off")
        num_bytes -= len(piece)
        yield piece


def _work(request: dict[str, object], streams: list[int]) -> NoReturn:
    """Be the worker: as if this process had been started with the request's arguments."""
    import runpy
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


def serve_driver(path: str) -> None:
    """Be the nursery of the driver that holds the other end of standard input; workers may outlive it."""
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o077)  # nobody else on this machine may ask for processes
    listener.bind(path)
    os.umask(before)
    listener.listen(128)
    preload()
    Nursery(listener, 0, idle_sec=None, orphans=True).run()
    shutil.rmtree(Path(path).parent, ignore_errors=True)


def serve_node(listener: socket.socket, raylet: int) -> None:
    """Be the nursery of a raylet's node; its workers end with it."""
    path = Path(listener.getsockname())
    try:
        preload()
        with suppress(ProcessLookupError):  # the raylet has ended already
            Nursery(listener, os.pidfd_open(raylet), idle_sec=IDLE_SEC, orphans=False).run()
    finally:
        path.unlink(missing_ok=True)  # while it still listens: nobody else has begun to


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.argv[1] == "--of-driver":
        serve_driver(sys.argv[2])
    else:
        serve_node(socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3]))
