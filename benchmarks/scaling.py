"""Measure weak scaling: the same batch per worker on one, two and three hosts, one worker each.

Hosts are network namespaces of this machine (tests/hosts), each with a fixed share of a processor, so that adding a
host adds computing power although the machine stays the same. What is measured is what going together costs: gradients,
votes and waiting, over a network that is as fast as memory. Workers are joined as torchrun would, without Ray, whose
daemons would compute on the hosts' shares.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING

from throughput import describe_machine

if TYPE_CHECKING:
    from tests.hosts.hosts import Hosts, unable
else:  # by its folder: some package on the path may be called `tests` too
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "hosts"))
    from hosts import Hosts, unable

SHOAL = Path(sys.executable).with_name("shoal")
PERIOD_US = 4_000
"""A host that has used up its share stands still for less than this: hosts hardly wait for each other's turn."""
ROWS = 12
"""Of metrics.jsonl in a run; the first one, with all that happens once, does not count."""
PORT = 29_500
RUN_SEC = 1_200
POLL_SEC = 0.05


@dataclass(frozen=True)
class Trial:
    """One run.

    Attributes:
        hosts: workers, one per host.
        samples_per_sec: of all together, the median of the rows.
        communication: share of the time that the network and its software take.
        waiting: share of the time that the workers wait for the slowest one, mean over them.
        data: share of the time that they wait for images.
    """

    hosts: int
    samples_per_sec: float
    communication: float
    waiting: float
    data: float


@contextmanager
def limited(names: Sequence[str], share: float) -> Iterator[dict[str, Path]]:
    """Yield, for every host, the file that takes a process into a control group with a share of one processor."""
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    top = Path("/sys/fs/cgroup") if unified else Path("/sys/fs/cgroup/cpu")
    quota = int(share * PERIOD_US)
    groups = {name: top / f"shoal-scaling-{os.getpid()}-{name}" for name in names}
    try:
        for group in groups.values():
            group.mkdir()
            if unified:
                (group / "cpu.max").write_text(f"{quota} {PERIOD_US}")
            else:
                (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (group / "cpu.cfs_quota_us").write_text(str(quota))
        yield {name: group / "cgroup.procs" for name, group in groups.items()}
    finally:
        for group in groups.values():
            if group.exists():
                group.rmdir()


def train(hosts: Hosts, groups: dict[str, Path], num: int, asked: argparse.Namespace, out: Path) -> Trial:
    """Train on the first ``num`` hosts."""
    batch = asked.batch * num
    every = max(1, asked.steps // ROWS) * batch
    command = [
        *(SHOAL, "train", asked.preset, "--data", asked.data.resolve(), "--out", out),
        *(f"batch={batch}", f"duration_samples={every * ROWS}", f"report.every_samples={every}"),
        *("report.images_every_samples=0", "report.quality_every_samples=0", "checkpoint.every_samples=0"),
        *(["--local"] if num == 1 else []),
    ]
    workers = []
    for rank, name in enumerate(hosts.names[:num]):
        joined = {
            "RANK": str(rank),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(num),
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": hosts.address("h0"),
            "MASTER_PORT": str(PORT),
            "TORCHELASTIC_RUN_ID": "scaling",  # torchrun's mark
        }
        workers.append(hosts.popen(name, command, environment=joined if num > 1 else {}))
    try:
        for name, worker in zip(hosts.names, workers, strict=False):
            confine(hosts, name, worker, groups[name])
        said = [worker.communicate(timeout=RUN_SEC)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    if any(worker.returncode for worker in workers):
        sys.exit("a worker failed:\n" + "\n".join(said))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][1:]

    def share(name: str) -> float:
        return mean(float(row.get(f"speed/{name}_share", 0.0)) for row in rows)

    return Trial(
        hosts=num,
        samples_per_sec=median(row["speed/samples_per_sec"] for row in rows),
        communication=share("communication"),
        waiting=share("straggler_wait"),
        data=share("data_wait"),
    )


def confine(hosts: Hosts, name: str, worker: "subprocess.Popen[str]", group: Path) -> None:
    """Put the worker of a host into its control group, while it is still importing: all its threads follow."""
    while worker.poll() is None:
        if found := hosts.pids(name, b"duration_samples="):
            for pid in found:
                group.write_text(str(pid))
            return
        time.sleep(POLL_SEC)


def print_table(trials: Sequence[Trial]) -> None:
    """Print a Markdown table, a row per number of hosts, medians over the rounds."""
    print("| hosts | samples/s | slowest and fastest round | of ideal | communication | waiting for the slowest |")
    print("|---:|---:|---:|---:|---:|---:|")
    alone = median(trial.samples_per_sec for trial in trials if trial.hosts == 1)
    for num in sorted({trial.hosts for trial in trials}):
        rounds = [trial for trial in trials if trial.hosts == num]
        speeds = [trial.samples_per_sec for trial in rounds]
        cells = [
            str(num),
            f"{median(speeds):,.0f}",
            f"{min(speeds):,.0f} to {max(speeds):,.0f}",
            f"{median(speeds) / num / alone:.0%}",
            f"{median(trial.communication for trial in rounds):.1%}",
            f"{median(trial.waiting for trial in rounds):.1%}",
        ]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Alternate the numbers of hosts and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="data set that the preset can train on")
    parser.add_argument("--preset", default="autoencoder")
    parser.add_argument("--batch", type=int, default=256, help="images per worker and step")
    parser.add_argument("--steps", type=int, default=240, help="of a run")
    parser.add_argument("--hosts", type=int, default=3, help="the most of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, help="of a processor, per host (default: what leaves one share free)")
    parser.add_argument("--json", action="store_true", help="print every trial instead of a table")
    asked = parser.parse_args()
    share = asked.share or min(1.0, (os.cpu_count() or 1) / (asked.hosts + 1))
    machine = describe_machine()
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        if why := unable(Path(folder) / "probe"):
            sys.exit(f"needs several hosts on this machine: {why}")
        shown = [asked.data, Path(folder)]
        with Hosts(asked.hosts, Path(folder) / "hosts", show=shown) as hosts, limited(hosts.names, share) as groups:
            for number in range(asked.rounds):
                order = range(1, asked.hosts + 1)
                for num in order if number % 2 == 0 else reversed(order):
                    began = time.monotonic()
                    trial = train(hosts, groups, num, asked, Path(folder) / f"run-{number}-{num}")
                    trials.append(trial)
                    took = time.monotonic() - began
                    print(
                        f"round {number + 1}: {trial} in {took:.0f} s, load {os.getloadavg()[0]:.1f}", file=sys.stderr
                    )
    if asked.json:
        print(json.dumps({"machine": machine, "share": share, "trials": [asdict(each) for each in trials]}, indent=1))
        return
    print_table(trials)
    print(
        f"\n`{asked.preset}`, {asked.batch} images per worker and step, {share:.2g} of a processor per host; {machine}."
    )


if __name__ == "__main__":
    try:
        main()
    except subprocess.TimeoutExpired as error:
        sys.exit(f"a run took longer than {error.timeout:.0f} s: the machine has too much to do")
