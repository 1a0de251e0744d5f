"""Ends a worker that makes no progress: a process of its own beside it, which even a stopped worker cannot escape.

A worker that hangs (in a driver, on storage that is gone, stopped by a debugger) keeps all others waiting. It cannot be
asked, and its threads may be stopped like itself; so another process counts its steps in shared memory and kills it
when there are none for too long. To its peers and to whoever started it, it is a lost worker then.

Run as a script, this file is that process. It needs the standard library only and is there in 30 ms.
"""

import mmap
import os
import select
import signal
import struct
import sys
import time
from types import TracebackType
from typing import Self

COUNT = struct.Struct("@Q")
LOOKS = 20
"""Looks at the count within the timeout: so much of it passes unnoticed at most, a twentieth."""


class Watchdog:
    """Has this process killed when it does not ``beat`` for too long; from the first beat on, until it is closed.

    Args:
        timeout_sec: between two beats; 0: nobody watches. Where the system has no handles for processes (other than
            Linux), nobody does either.
    """

    def __init__(self, timeout_sec: float) -> None:
        self._count = 0
        self._shared: mmap.mmap | None = None
        if timeout_sec <= 0 or not hasattr(os, "pidfd_open"):
            return
        import subprocess

        memory, watched = os.memfd_create("shoal-heartbeat"), os.pidfd_open(os.getpid())
        try:
            os.ftruncate(memory, COUNT.size)
            self._shared = mmap.mmap(memory, COUNT.size)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(watched), str(memory), str(timeout_sec)],
                pass_fds=(watched, memory),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # or it would be stopped with the group that it watches
            )
        finally:
            os.close(memory)
            os.close(watched)

    def beat(self) -> None:
        """Tell that there is progress; costs less than a microsecond."""
        if self._shared is not None:
            self._count += 1
            COUNT.pack_into(self._shared, 0, self._count)

    def close(self) -> None:
        """End the watch."""
        if self._shared is not None:
            self._process.kill()
            self._process.wait()
            self._shared = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def watch(watched: int, memory: int, timeout_sec: float) -> bool:
    """Wait until a process ends, or kill it.

    Args:
        watched: handle (pidfd) of the process.
        memory: file that it counts its steps in.
        timeout_sec: without a step, after the first.

    Returns:
        Whether it was killed.
    """
    between_sec = timeout_sec / LOOKS
    silent_sec, seen = 0.0, 0
    with mmap.mmap(memory, COUNT.size, prot=mmap.PROT_READ) as shared:
        before = time.monotonic()
        while not select.select([watched], [], [], between_sec)[0]:
            now = time.monotonic()
            (count,) = COUNT.unpack_from(shared)
            # A machine that stood still, and this process with it, was not silent.
            silent_sec = silent_sec + min(now - before, 2 * between_sec) if count == seen and count else 0.0
            before, seen = now, count
            if silent_sec >= timeout_sec:
                print(f"no progress for {silent_sec:.0f} s: killed", file=sys.stderr, flush=True)
                signal.pidfd_send_signal(watched, signal.SIGKILL)
                return True
    return False


if __name__ == "__main__":
    watch(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
