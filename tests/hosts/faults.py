"""What can happen to a run, as a table. Each fault is there inside a context, and over when that ends."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

from tests.hosts.training import DEADLINE_SEC, WORKER, Training
from tests.storage.faulty import Fault as StoreFault

Inject = Callable[[Training], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that happens to a run.

    Attributes:
        name: in the table of the docs.
        inject: returns a context in which the fault is there.
        lasts_sec: how long that is; None: until the run has ended.
        workers: of the run, as its flag says it.
        flags: further words of ``shoal train``.
        pace: to what the network of every worker is limited from the start on, so that the run outlasts the fault.
        storage: where the run is: a shared folder, a shared disk of its own, or an object store.
        losses: how often workers may be lost by it.
        exact: whether the weights must be those of an undisturbed run bit for bit; else its error within 1 %.
        like: the workers of that run.
        scalar: what some row of the metrics must have, since the fault is noticed by the run itself.
        turns: how often it happens at least, each time to another run.
    """

    name: str
    inject: Inject
    lasts_sec: float | None = None
    workers: str = "2"
    flags: tuple[str, ...] = ()
    pace: str | None = None
    storage: Literal["folder", "disk", "store"] = "folder"
    losses: range = range(1)
    exact: bool = True
    like: str = "2"
    scalar: str | None = None
    turns: int = 1


ONCE = range(1, 2)
AT_MOST_ONCE = range(2)


# --- processes --------------------------------------------------------------------------------------------------------


@contextmanager
def killed_worker(training: Training) -> Iterator[None]:
    training.hosts.signal(training.first, WORKER, signal.SIGKILL)
    yield


@contextmanager
def stopped_worker(training: Training) -> Iterator[None]:
    training.hosts.signal(training.other, WORKER, signal.SIGSTOP)
    yield


@contextmanager
def killed_raylet(training: Training) -> Iterator[None]:
    training.hosts.signal(training.first, b"raylet/raylet", signal.SIGKILL)
    yield


@contextmanager
def killed_head(training: Training) -> Iterator[None]:
    head = training.cluster.head
    training.hosts.signal(head, b"", signal.SIGKILL)
    yield
    training.cluster.start(head)


@contextmanager
def killed_driver(training: Training) -> Iterator[None]:
    training.kill_driver()
    yield
    training.resume()


@contextmanager
def killed_while_writing(training: Training) -> Iterator[None]:
    os.kill(stopped_while_writing(training), signal.SIGKILL)
    yield


@contextmanager
def cut_off_while_writing(training: Training) -> Iterator[None]:
    """A writer that wakes up in the middle of a checkpoint, without peers, when others have long taken over."""
    host = training.first
    pid = stopped_while_writing(training)
    with training.hosts.parted(host):
        training.until(lambda: training.first != host and training.rows()[-1]["time"] > training.starts()[-1]["time"])
        os.kill(pid, signal.SIGCONT)
        yield


def stopped_while_writing(training: Training) -> int:
    """Stop the first worker in the middle of a checkpoint; return its pid."""
    (pid,) = training.hosts.pids(training.first, WORKER)
    deadline = time.monotonic() + DEADLINE_SEC
    while time.monotonic() < deadline:
        if training.being_written():
            os.kill(pid, signal.SIGSTOP)
            if training.being_written():
                return pid
            os.kill(pid, signal.SIGCONT)
    raise AssertionError("no checkpoint was written")


# --- hosts and cables -------------------------------------------------------------------------------------------------


@contextmanager
def power_off(training: Training) -> Iterator[None]:
    host = training.first
    training.hosts.crash(host)
    yield
    training.cluster.start(host)


@contextmanager
def power_off_until_all_is_well_without(training: Training) -> Iterator[None]:
    """A host that comes back when the run goes on with what is left."""
    host = training.other
    training.hosts.crash(host)
    training.until(lambda: training.starts()[-1]["workers"] == 2)
    training.until(lambda: training.rows()[-1]["time"] > training.starts()[-1]["time"])
    training.cluster.start(host)
    training.until(lambda: training.starts()[-1]["workers"] == 3)
    yield


@contextmanager
def pulled_cable(training: Training) -> Iterator[None]:
    with training.hosts.parted(training.first):
        yield


def loss(percent: int) -> Inject:
    return lambda training: training.hosts.lossy(training.other, percent)


def limit(rate: str) -> Inject:
    return lambda training: training.hosts.limited(training.other, rate)


# --- storage ----------------------------------------------------------------------------------------------------------


@contextmanager
def full_disk(training: Training) -> Iterator[None]:
    filler = training.folder.parent / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            os.fsync(file.fileno())
    yield
    filler.unlink()


@contextmanager
def frozen_disk(training: Training) -> Iterator[None]:
    """A disk that answers no write, as a mount of NFS whose server is gone."""
    disk = training.folder.parent
    subprocess.run(["fsfreeze", "--freeze", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", disk], check=True)


@contextmanager
def vanished_folder(training: Training) -> Iterator[None]:
    away = training.folder.with_name(f"{training.folder.name}-away")
    training.folder.rename(away)
    yield
    away.rename(training.folder)


@contextmanager
def unavailable_store(training: Training) -> Iterator[None]:
    assert training.store is not None
    endless = StoreFault(1_000_000, status=503)
    training.store.endpoint.faults.append(endless)
    yield
    training.store.endpoint.faults.clear()
    assert endless.times < 1_000_000


# ----------------------------------------------------------------------------------------------------------------------

FAULTS = {
    "killed-worker": Fault(
        name="kill -9 of a worker",
        inject=killed_worker,
        losses=ONCE,
    ),
    "stopped-worker": Fault(
        name="SIGSTOP of a worker, `--hang-timeout 5`",
        inject=stopped_worker,
        flags=("--hang-timeout", "5"),
        losses=ONCE,
    ),
    "killed-raylet": Fault(
        name="kill -9 of a raylet; a spare host",
        inject=killed_raylet,
        losses=ONCE,
    ),
    "lost-host-spare": Fault(
        name="a host loses power; a spare host",
        inject=power_off,
        losses=ONCE,
    ),
    "lost-host": Fault(
        name="a host loses power; no spare, back after 10 s",
        inject=power_off,
        lasts_sec=10,
        workers="3",
        like="3",
        losses=ONCE,
    ),
    "elastic": Fault(
        name="a host loses power; `--workers 2-3`: 3, 2, 3 workers",
        inject=power_off_until_all_is_well_without,
        workers="2-3",
        like="3",
        pace="20mbit",
        losses=ONCE,
        exact=False,
    ),
    "cable-6s": Fault(
        name="a cable is out for 6 s",
        inject=pulled_cable,
        lasts_sec=6,
        losses=AT_MOST_ONCE,
    ),
    "cable": Fault(
        name="a cable is out for good; a spare host",
        inject=pulled_cable,
        losses=ONCE,
    ),
    "loss-2": Fault(
        name="2 % of a host's packets are lost, for 20 s",
        inject=loss(2),
        lasts_sec=20,
    ),
    "loss-10": Fault(
        name="10 % of a host's packets are lost, for 20 s",
        inject=loss(10),
        lasts_sec=20,
    ),
    "slow": Fault(
        name="a host has 20 Mbit/s",
        inject=limit("20mbit"),
    ),
    "killed-head": Fault(
        name="kill -9 of the head's processes; started after 12 s",
        inject=killed_head,
        lasts_sec=12,
        pace="20mbit",
    ),
    "killed-driver": Fault(
        name="kill -9 of the driver; `--resume` at once",
        inject=killed_driver,
        lasts_sec=0,
    ),
    "killed-writer": Fault(
        name="kill -9 of the first worker in the middle of a checkpoint",
        inject=killed_while_writing,
        losses=ONCE,
        turns=3,
    ),
    "cut-off-writer": Fault(
        name="the first worker stopped in the middle of a checkpoint and cut off; woken when others went on",
        inject=cut_off_while_writing,
        losses=ONCE,
    ),
    "full-disk": Fault(
        name="the shared disk is full for 15 s",
        inject=full_disk,
        lasts_sec=15,
        scalar="checkpoint/failed",
        storage="disk",
        pace="20mbit",
    ),
    "frozen-disk": Fault(
        name="the shared disk hangs for 20 s",
        inject=frozen_disk,
        lasts_sec=20,
        storage="disk",
        pace="20mbit",
    ),
    "vanished-folder": Fault(
        name="the shared folder is gone for 20 s",
        inject=vanished_folder,
        lasts_sec=20,
        scalar="checkpoint/failed",
        pace="20mbit",
    ),
    "unavailable-store": Fault(
        name="S3 answers 503 for 20 s",
        inject=unavailable_store,
        lasts_sec=20,
        storage="store",
        pace="20mbit",
    ),
}
