import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from numpy.typing import NDArray
from tests.storage.s3 import s3, s3_port  # noqa: F401 - fixtures
from xdist.scheduler import LoadFileScheduling

from shoal.checkpoint import Checkpoint, directory_name
from shoal.config import RunConfig, build_config, with_overrides
from shoal.data.write import write_dataset
from shoal.loop import Tick, train
from shoal.objectives import OBJECTIVES
from shoal.run import Run
from shoal.world import World
from shoal_ray import warm

CLUSTERS = (
    "hosts",
    "population/test_ray_contract.py",
    "population/test_search.py",
    "ray_train",
    "submission/test_jobs.py",
)
"""Where nearly every test lives on a cluster, of which two at once would starve each other.

A few elsewhere need one for a moment.
"""


def starts_clusters(path: Path) -> bool:
    here = Path(__file__).parent
    return any(path.is_relative_to(here / name) for name in CLUSTERS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the clusters: they take longest, and with several processes the others go beside them."""
    items.sort(key=lambda item: not starts_clusters(item.path))


class OneClusterAtATime(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Among processes (``pytest -n``), a file's tests stay together, and so do all that start clusters."""

    def _split_scope(self, nodeid: str) -> str:
        path = self.config.rootpath / nodeid.partition("::")[0]
        return "clusters" if starts_clusters(path) else str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneClusterAtATime:
    config.option.loadscopereorder = False  # as collected
    return OneClusterAtATime(config, log)


settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

torch.set_num_threads(1)

# A shell has its background jobs ignore Ctrl-C, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

DEADLINE_SEC = 300
"""For a world of ranks to play its scenario."""

CLASSES = ["north-west", "north-east", "south-west", "south-east"]

# 96 training images and batches of 20: no batch boundary falls on an epoch's before sample 480.
TINY: dict[str, dict[str, Any]] = {
    "autoencoder": {
        "objective": {"name": "autoencoder"},
        "nets": {"name": "mlp", "latent": 4, "hidden": [16]},
        "optim": {"lr": 1e-2},
    },
    "gan": {
        "objective": {"name": "gan"},
        "nets": {"name": "mlp", "latent": 5, "hidden": [16], "activation": "leaky_relu"},
        "data": {"range": "symmetric"},
        "optim": {"lr": 2e-3, "betas": [0.5, 0.999]},
    },
}
COMMON: dict[str, Any] = {
    "batch": 20,
    "duration_samples": 200,
    "ema": {"half_life_samples": 100},
    "report": {"every_samples": 20, "images_every_samples": 0},
    "checkpoint": {"every_samples": 80},
}


def paint(num: int, channels: int, size: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images that are noise with one bright quadrant, and which quadrant it is."""
    labels = np.arange(num) % 4
    images = np.random.default_rng(seed).integers(0, 60, (num, channels, size, size))
    half = size // 2
    for image, label in zip(images, labels, strict=True):
        top, left = label // 2 * half, label % 2 * half
        image[:, top : top + half, left : left + half] += 180
    return images.astype(np.uint8), labels


def write(out: Path, num: int, channels: int, size: int) -> Path:
    """Write ``num`` training and a third as many test images, in blocks of 16 and shards of three blocks."""
    write_dataset(
        out,
        {"train": [paint(num, channels, size, 0)], "test": [paint(num // 3, channels, size, 1)]},
        shape=(channels, size, size),
        class_names=CLASSES,
        source="painted",
        rows_per_block=16,
        shard_bytes=3 * 16 * channels * size * size,
    )
    return out


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 + 32 grey images of 28x28."""
    return write(tmp_path_factory.mktemp("data") / "grey", 96, 1, 28)


@pytest.fixture(scope="session")
def colour_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 + 16 colour images of 32x32."""
    return write(tmp_path_factory.mktemp("data") / "colour", 48, 3, 32)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., RunConfig]:
    """Return ``tiny(kind, *overrides)``: the configuration of a run of a second, ``autoencoder`` or ``gan``."""

    def build(kind: str = "autoencoder", *overrides: str) -> RunConfig:
        return with_overrides(build_config({**COMMON, **TINY[kind]}), overrides)

    return build


@pytest.fixture
def make_run(tmp_path: Path, small_data: Path, tiny: Callable[..., RunConfig]) -> Callable[..., Run]:
    """Return ``make_run(kind, *overrides, data=…)``: a fresh run directory."""
    numbers = count()

    def make(kind: str = "autoencoder", *overrides: str, data: Path | None = None) -> Run:
        return Run.create(tmp_path / f"run-{next(numbers)}", tiny(kind, *overrides), data or small_data)

    return make


@pytest.fixture(scope="session")
def finish() -> Callable[..., list[Tick]]:
    """Return ``finish(run, …)``: train alone on the CPU, save what is due, give the ticks.

    ``stop_after`` is the number of steps after which to stop; ``into`` receives the ticks one by one.
    """

    def run_to_end(
        run: Run, resume: Checkpoint | None = None, stop_after: int | None = None, into: list[Tick] | None = None
    ) -> list[Tick]:
        ticks = [] if into is None else into
        asked = count(1)
        for tick in train(run, World.local("cpu"), resume=resume, should_stop=lambda: next(asked) == stop_after):
            if tick.save is not None:
                tick.save(run.checkpoints / directory_name(tick.samples))
            ticks.append(tick)
        return ticks

    return run_to_end


@pytest.fixture(scope="session")
def newest() -> Callable[[Run], Checkpoint]:
    """Return the newest checkpoint of a run, which must have one."""

    def find(run: Run) -> Checkpoint:
        found = run.newest_checkpoint()
        assert found is not None
        return found

    return find


@pytest.fixture(scope="session")
def differing() -> Callable[..., list[str]]:
    """Return the names under which two sets of tensors are not bit for bit the same."""

    def compare(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> list[str]:
        return sorted(
            name
            for name in one.keys() | two.keys()
            if name not in one
            or name not in two
            or one[name].dtype != two[name].dtype
            or not one[name].equal(two[name])
        )

    return compare


@pytest.fixture(scope="session")
def measures() -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return what a row or a tick's scalars measure of the learning, without what the clock on the wall says."""

    def without_times(row: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: value
            for name, value in row.items()
            if name != "time" and not name.startswith(("speed/", "checkpoint/"))
        }

    return without_times


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a process that has imported torch forks others: importing it is most of what a small world would do."""
    path = Path(tempfile.mkdtemp(prefix="shoal-"), "nursery")  # a short path, of a socket
    words = [sys.executable, "-m", "shoal_ray.nursery", "--of-driver", str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:  # it ends with its input
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.01)  # between two looks
        yield path


@pytest.fixture(scope="session")
def launch_world(nursery: Path) -> Callable[..., list[str]]:
    """Return ``launch(size, *words)``: run Python with these words on so many ranks, as torchrun would, to its end.

    What each rank printed comes back.
    """

    def launch(size: int, *words: str | Path) -> list[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = os.environ | {
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }
        by_fork = () if words[0] == "-m" else ("-m", "shoal_ray.warm", "--by", nursery)  # which runs files
        ranks = [
            subprocess.Popen(
                [sys.executable, *by_fork, *map(str, words)],
                env=common | {"RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]
        try:
            said = [process.communicate(timeout=DEADLINE_SEC) for process in ranks]
        finally:
            for process in ranks:
                process.kill()
        assert [process.returncode for process in ranks] == [0] * size, "\n".join(out + err for out, err in said)
        return [out for out, _ in said]

    return launch


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a real file system with room for 4 MB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root and mount, to make a small file system")
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.fixture(scope="session", autouse=True)
def no_nursery_left() -> Iterator[None]:
    """End what this process has started as a driver, and would else leave to end with it."""
    yield
    for process in warm._nurseries.values():
        process.communicate()  # closes its input, which is what it lives by


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Put the registry of objectives back afterwards: a plug-in of one test is unknown to the next."""
    before = dict(OBJECTIVES)
    yield
    OBJECTIVES.clear()
    OBJECTIVES.update(before)
