import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.hosts.cluster import RayCluster
from tests.hosts.hosts import Hosts, unable
from tests.hosts.store import CREDENTIALS, Store
from tests.hosts.training import KINDS, Training, Undisturbed, write_images

HERE = Path(__file__).parent
AFTER_THE_LAST = pytest.StashKey[ExitStack]()
"""What is taken down with the last test of this folder: a cluster that nobody uses still takes its share of a core."""


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is not None and not nextitem.path.is_relative_to(HERE):
        item.config.stash.setdefault(AFTER_THE_LAST, ExitStack()).close()


@pytest.fixture(scope="session")
def able(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where this machine cannot be several hosts."""
    if why := unable(tmp_path_factory.mktemp("probe") / "hosts"):
        pytest.skip(f"needs several hosts: {why}")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the hosts of the cluster share."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session")
def small_disk(able: None, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """A disk of 64 MiB that all hosts share, mounted before they are up; None where there are no loop devices."""
    image, disk = tmp_path_factory.mktemp("image") / "disk.ext4", shared / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    # No time of access: reading a frozen disk would hang too.
    make, mount = ["mkfs.ext4", "-qm0", str(image)], ["mount", "-o", "loop,noatime", str(image), str(disk)]
    mounted = all(subprocess.run(words, capture_output=True).returncode == 0 for words in (make, mount))
    yield disk if mounted else None
    if mounted:
        subprocess.run(["umount", disk], check=True)


@pytest.fixture(scope="session")
def whole_cluster(
    able: None,
    shared: Path,
    small_disk: Path | None,
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
) -> Iterator[RayCluster]:
    """Ray on five hosts, once for all tests: h0 is its head, h1 to h3 have a CPU each, on h4 commands are typed."""
    with ExitStack() as stack:
        disks = tmp_path_factory.mktemp("disks") / "hosts"
        hosts = stack.enter_context(Hosts(5, disks, show=[shared], environment=CREDENTIALS))
        pytestconfig.stash[AFTER_THE_LAST] = stack
        yield RayCluster(hosts)


@pytest.fixture
def cluster(whole_cluster: RayCluster) -> RayCluster:
    """The cluster, in order."""
    whole_cluster.mend()
    return whole_cluster


@pytest.fixture(scope="session")
def data(shared: Path) -> Path:
    """The data set of all runs."""
    write_images(shared / "data")
    return shared / "data"


@pytest.fixture
def undisturbed(
    cluster: RayCluster, data: Path, shared: Path, trained: dict[str, Undisturbed]
) -> Callable[..., Undisturbed]:
    """Return ``undisturbed(kind, workers)``: what the disturbed runs must come to; trained once."""

    def train(kind: str, workers: str) -> Undisturbed:
        name = f"{kind}-{workers}"
        if name not in trained:
            before = cluster.hosts.counters()
            words = (*KINDS[kind], "--data", data, "--workers", workers)
            with Training(cluster, shared / name, *words) as training:
                training.finish()
            sent = {host: sent - before[host][1] for host, (_, sent) in cluster.hosts.counters().items()}
            trained[name] = Undisturbed(training.run, sent)
        return trained[name]

    return train


@pytest.fixture(scope="session")
def trained() -> dict[str, Undisturbed]:
    """The undisturbed runs that there are."""
    return {}


@pytest.fixture
def disk(small_disk: Path | None) -> Path:
    """A shared disk of its own, small, and with nothing else on it."""
    if small_disk is None:
        pytest.skip("needs a loop device and mkfs.ext4")
    return small_disk


@pytest.fixture
def store(cluster: RayCluster) -> Iterator[Store]:
    """An S3 endpoint on the host that commands are typed on."""
    with Store(cluster.hosts, cluster.client) as store:
        yield store
