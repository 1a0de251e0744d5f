"""Measure ``shoal train seed-autoencoder --workers 1`` side by side with a plain PyTorch loop.

Both run as commands of their own, turn and turn about, on the same number of torch threads and the same images. Speed
is taken by the clock from the first report to the last, so that start-up is left out and reporting is not.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

PRESET = "seed-autoencoder"
EVERY_SAMPLES = 30_000
POLL_SEC = 0.005
PLAIN = Path(__file__).with_name("plain_autoencoder.py")
SHOAL = Path(sys.executable).with_name("shoal")
RAY_NICENESS = 15
"""Ray gives way to all else on the machine; the plain loop does so too, or a busy machine would slow one side only."""


@dataclass(frozen=True)
class Trial:
    """One command, timed.

    Attributes:
        samples_per_sec: by the clock, between the first report and the last.
        startup_sec: from the command's start to its first report.
        total_sec: from the command's start to its end.
        loss: mean of the last report; the two must learn alike for their speeds to be comparable.
        loop_samples_per_sec: what a Shoal run notes itself, which leaves out the writing of reports.
    """

    samples_per_sec: float
    startup_sec: float
    total_sec: float
    loss: float
    loop_samples_per_sec: float | None = None


def time_shoal(data: Path, num_samples: int, threads: int, folder: Path) -> Trial:
    """Run the real command in a fresh process, Ray and all; note when each row of its metrics arrives."""
    run = folder / "run"
    overrides = [f"duration_samples={num_samples}", f"report.every_samples={EVERY_SAMPLES}"]
    where = ["--workers", "1", "--cpus-per-worker", str(threads), "--data", str(data), "--out", str(run)]
    ticks: list[tuple[int, float]] = []
    rows: list[dict[str, float]] = []
    with (folder / "log").open("w+") as log:
        began = time.time()
        process = subprocess.Popen(
            [SHOAL, "train", PRESET, *where, *overrides],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(threads),
        )
        running = True
        while running:
            running = process.poll() is None
            ticks += [(int(row["samples"]), time.time()) for row in new_rows(run / "metrics.jsonl", rows)]
            time.sleep(POLL_SEC)
        total = time.time() - began
        if process.returncode:
            log.seek(0)
            sys.exit(f"shoal train failed:\n{log.read()}")
    return Trial(
        samples_per_sec=speed(ticks),
        startup_sec=ticks[0][1] - began,
        total_sec=total,
        loss=rows[-1]["loss/reconstruction"],
        loop_samples_per_sec=median(row["speed/samples_per_sec"] for row in rows[1:]),
    )


def time_plain(data: Path, num_samples: int, threads: int) -> Trial:
    """Run the plain loop in a fresh process."""
    settings = {"data": data, "samples": num_samples, "every-samples": EVERY_SAMPLES, "threads": threads}
    began = time.time()
    done = subprocess.run(
        [
            "nice",
            "-n",
            str(RAY_NICENESS),
            sys.executable,
            PLAIN,
            *(f"--{key}={value}" for key, value in settings.items()),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=environment(threads),
    )
    total = time.time() - began
    if done.returncode:
        sys.exit(f"the plain loop failed:\n{done.stderr}")
    found = json.loads(done.stdout)
    return Trial(speed(found["ticks"]), found["ticks"][0][1] - began, total, found["loss"])


def new_rows(path: Path, seen: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return the whole rows of a growing file that are not in ``seen`` yet, and add them to it."""
    if not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    fresh = [json.loads(line) for line in lines[len(seen) :] if line.endswith("\n")]
    seen += fresh
    return fresh


def speed(ticks: list[tuple[int, float]]) -> float:
    """Return samples a second from the first tick to the last."""
    (first_samples, first), (last_samples, last) = ticks[0], ticks[-1]
    return (last_samples - first_samples) / (last - first)


def environment(threads: int) -> dict[str, str]:
    """Return this environment with as many threads for torch, in every process that inherits it."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def describe_machine() -> str:
    """Return processor, load and versions in one line."""
    cpus = Path("/proc/cpuinfo")
    models = [line.partition(": ")[2] for line in cpus.read_text().splitlines() if line.startswith("model name")]
    name = models[0] if models else platform.processor()
    versions = ", ".join(f"{package} {version(package)}" for package in ("shoal", "torch", "ray"))
    return f"{os.cpu_count()} x {name}, load {os.getloadavg()[0]:.1f} at the start; {versions}"


def print_table(trials: dict[str, list[Trial]]) -> None:
    """Print a Markdown table, a row per command, medians first."""
    print("| command | samples/s | slowest and fastest round | to first report | whole command | last loss |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, rounds in trials.items():
        speeds = [trial.samples_per_sec for trial in rounds]
        cells = [
            f"{median(speeds):,.0f}",
            f"{min(speeds):,.0f} to {max(speeds):,.0f}",
            f"{median(trial.startup_sec for trial in rounds):.1f} s",
            f"{median(trial.total_sec for trial in rounds):.1f} s",
            f"{median(trial.loss for trial in rounds):.4f}",
        ]
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    """Alternate the two commands and print medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="data set of 28x28 grey images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=300_000, help=f"a round, at least {2 * EVERY_SAMPLES:,}")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on both sides")
    parser.add_argument("--json", action="store_true", help="print every trial instead of a table")
    asked = parser.parse_args()
    if asked.samples < 2 * EVERY_SAMPLES:
        parser.error(f"--samples {asked.samples} is less than {2 * EVERY_SAMPLES}: two reports make one measurement")
    machine = describe_machine()
    shoal: list[Trial] = []
    plain: list[Trial] = []
    for number in range(asked.rounds):
        print(f"round {number + 1} of {asked.rounds}", file=sys.stderr)
        for is_shoal in (True, False) if number % 2 == 0 else (False, True):  # neither is always the first
            if is_shoal:
                with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
                    shoal.append(time_shoal(asked.data, asked.samples, asked.threads, Path(folder)))
            else:
                plain.append(time_plain(asked.data, asked.samples, asked.threads))
    ratios = [ours.samples_per_sec / theirs.samples_per_sec for ours, theirs in zip(shoal, plain, strict=True)]
    if asked.json:
        found = {"shoal": [asdict(trial) for trial in shoal], "plain": [asdict(trial) for trial in plain]}
        print(json.dumps({"ratio": median(ratios), "ratios": ratios, "machine": machine, **found}, indent=1))
        return
    print_table({f"`shoal train {PRESET} --workers 1`": shoal, "plain PyTorch loop": plain})
    within = median(trial.loop_samples_per_sec or 0 for trial in shoal) / median(t.samples_per_sec for t in plain)
    print(f"\nRatio **{median(ratios):.2f}** (rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)}); ", end="")
    print(f"{within:.2f} by the run's own `speed/samples_per_sec`, which leaves out the writing of reports.\n")
    print(f"{asked.samples:,} samples a round, {asked.threads} thread(s); {machine}.")


if __name__ == "__main__":
    main()
