"""The files of a run that others write, as this machine sees them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from shoal.errors import StorageError
from shoal.run import Run
from shoal.run_files import FAILURES, METRICS, STARTS, WORKERS, fetch_settings
from shoal.storage.mirror import Mirror

EVERY_SEC = 1.0


@contextmanager
def followed(run: Run) -> Iterator[Run]:
    """Yield the run as it can be watched from here while the block lasts; at its end, all that was written is here.

    A run in a directory is its own. One at a URI is trained on whatever node its first worker is on: its metrics come
    to a copy, from a thread, so that a store that does not answer keeps nobody waiting; and the log of lost workers,
    which is written in that copy, goes to the URI.
    """
    if run.mirror is None:
        yield run
        return
    mirror = Mirror.of(run.mirror.home, writes=False)
    fetch_settings(mirror, METRICS, FAILURES)
    done = threading.Event()

    def follow() -> None:
        sent = _size(mirror)
        while not done.wait(EVERY_SEC):
            with suppress(StorageError):  # the next look will tell
                mirror.pull([METRICS])
                if _size(mirror) != sent:
                    mirror.push([FAILURES])
                    sent = _size(mirror)

    thread = threading.Thread(target=follow, name="follower", daemon=True)
    thread.start()
    try:
        yield replace(run, path=mirror.path, mirror=mirror)
    finally:
        done.set()
        thread.join()
        with suppress(StorageError):  # the workers have said what there is to say
            mirror.push([FAILURES])
            mirror.pull([METRICS, STARTS, WORKERS])


def _size(mirror: Mirror) -> int:
    log = mirror.path / FAILURES
    return log.stat().st_size if log.exists() else 0
