"""Who meets whom in ``others.py``, and how one of them is trained and timed: as a command in a process of its own."""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from contender import METRICS
from judging import Outputs
from throughput import POLL_SEC, environment, new_rows, speed
from torch import Tensor

HERE = Path(__file__).parent
SHOAL = Path(sys.executable).with_name("shoal")
REPORTS = 10
"""Reports of a run, evenly spread; its speed is that from the first to the last."""
PACKAGES = (
    "pythae==0.1.2 cloudpickle imageio scikit-learn joblib threadpoolctl narwhals scipy tqdm"
    " matplotlib contourpy cycler fonttools kiwisolver pyparsing"
)
"""pythae and Ray's example, with all that they import and Shoal does not bring. Without their dependencies: those would
bring a torch and a numpy of their own."""
IMPORTED = {
    "pythae_vae.py": ("pythae", "cloudpickle", "imageio", "sklearn", "joblib", "threadpoolctl", "scipy", "tqdm"),
    "ray_dcgan.py": ("matplotlib", "contourpy", "cycler", "fontTools", "kiwisolver", "pyparsing", "scipy"),
}


@dataclass(frozen=True)
class Contender:
    """Something to train.

    Attributes:
        label: its name in the table.
        words: Shoal's CONFIG and overrides, or the script's own flags.
        script: of the benchmark, for a contender that is not Shoal.
    """

    label: str
    words: tuple[str, ...]
    script: str | None = None


PYTHAE = "pythae_vae.py"
VAE = ("vae", "nets.latent=16", "batch=100")
VQ_VAE = ("vq-vae", "batch=100")
PYTHAE_VAE = ("--kind", "vae", "--batch", "100")
PYTHAE_VQ_VAE = ("--kind", "vq-vae", "--batch", "100")
CONTESTS: Mapping[str, Sequence[Contender]] = {
    # The first of each is what the others are compared with.
    "vae": (
        Contender("Shoal `vae`", VAE),
        Contender("Shoal `vae`, pythae's loss: `objective.sigma=1`", (*VAE, "objective.sigma=1")),
        Contender("pythae VAE, its convolutions", (*PYTHAE_VAE, "--latent", "16", "--family", "conv"), PYTHAE),
        Contender("pythae VAE, its ResNets", (*PYTHAE_VAE, "--latent", "16", "--family", "resnet"), PYTHAE),
        Contender("pythae VAE, Shoal's networks", (*PYTHAE_VAE, "--preset", *VAE, "objective.sigma=1"), PYTHAE),
    ),
    "vq-vae": (
        Contender("Shoal `vq-vae`", VQ_VAE),
        Contender("pythae VQ-VAE, its ResNets", PYTHAE_VQ_VAE, PYTHAE),
        Contender("pythae VQ-VAE, Shoal's networks", (*PYTHAE_VQ_VAE, "--preset", *VQ_VAE), PYTHAE),
    ),
    "gan": (
        Contender("Shoal `dcgan`", ("dcgan", "batch=64")),
        Contender("Ray's `pbt_dcgan_mnist`, alone", (), "ray_dcgan.py"),
    ),
}


@dataclass(frozen=True)
class Trial:
    """One command, timed.

    Attributes:
        samples_per_sec: by the clock, between the first report and the last.
        cpu_ms: of all threads for one image, over the same time: it hardly depends on what else the machine does.
        startup_sec: from the command's start to its first report.
        total_sec: from the command's start to its end.
    """

    samples_per_sec: float
    cpu_ms: float
    startup_sec: float
    total_sec: float


@dataclass(frozen=True)
class Arena:
    """What all contenders are given.

    Attributes:
        data: the data set's directory.
        threads: of torch.
        others_path: where the others are installed.
        judged: test images to reconstruct, and images to generate.
    """

    data: Path
    threads: int
    others_path: Path
    judged: int

    def train(self, contender: Contender, num_samples: int, seed: int, folder: Path, *, judged: bool) -> Trial:
        """Run a contender's command in ``folder`` and time it by the rows that it reports."""
        every = max(1, num_samples // REPORTS)
        if contender.script is None:
            where = ["--local", "--data", str(self.data), "--out", str(folder / "run")]
            reports = [f"report.every_samples={every}", "report.images_every_samples=0"]
            length = [f"duration_samples={num_samples}", f"checkpoint.every_samples={num_samples}", f"seed={seed}"]
            command = [str(SHOAL), "train", *contender.words, *where, *reports, *length]
        else:
            flags = {
                "data": self.data,
                "out": folder,
                "samples": num_samples,
                "every-samples": every,
                "seed": seed,
                "others-path": self.others_path,
                "judged": self.judged if judged else 0,
            }
            named = [f"--{key}={value}" for key, value in flags.items()]
            command = [sys.executable, str(HERE / contender.script), *named, *contender.words]
        metrics = folder / ("run" if contender.script is None else "") / METRICS
        return self._timed(command, metrics, folder / "log")

    def _timed(self, command: list[str], metrics: Path, log_path: Path) -> Trial:
        ticks: list[tuple[int, float]] = []
        cpu_secs: list[float] = []
        rows: list[dict[str, float]] = []
        cpu_sec = 0.0
        with log_path.open("w+") as log:
            began = time.time()
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment(self.threads)
            )
            running = True
            while running:
                cpu_sec = cpu_time(process.pid) or cpu_sec
                running = process.poll() is None
                fresh = new_rows(metrics, rows)
                ticks += [(int(row["samples"]), time.time()) for row in fresh]
                cpu_secs += [cpu_sec] * len(fresh)
                time.sleep(POLL_SEC)
            total = time.time() - began
            if process.returncode:
                log.seek(0)
                sys.exit(f"{' '.join(command)} failed:\n{log.read()}")
        num = ticks[-1][0] - ticks[0][0]
        return Trial(
            samples_per_sec=speed(ticks),
            cpu_ms=1e3 * (cpu_secs[-1] - cpu_secs[0]) / num,
            startup_sec=ticks[0][1] - began,
            total_sec=total,
        )


def cpu_time(pid: int) -> float:
    """Return the seconds that all threads of a process have computed; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system, see proc(5)


def outputs(contender: Contender, folder: Path, pixels: Tensor) -> Outputs:
    """Return what a contender has made of the test images ``pixels``, and generated, after training in ``folder``."""
    return Outputs.of_run(folder / "run", pixels) if contender.script is None else Outputs.of_contender(folder)


def missing_packages(contests: Iterable[str], folder: Path) -> list[str]:
    """Return what the contenders import that is installed neither here nor in ``folder``."""
    scripts = {contender.script for name in contests for contender in CONTESTS[name] if contender.script}
    needed = sorted({package for script in scripts for package in IMPORTED[script]})
    sys.path.append(str(folder))
    try:
        return [package for package in needed if importlib.util.find_spec(package) is None]
    finally:
        sys.path.remove(str(folder))
