"""Train every preset, measure it, and write the table and the pictures of ``docs/quality.md``.

Each row comes from the commands that a user would type: ``shoal train``, ``eval``, ``sample`` or
``reconstruct``. What is trained already is not trained again, so that the command can be stopped and given again, and
budgets can grow.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from pca import linear_yardstick, pixels
from throughput import describe_machine, environment

from shoal.config import read_config
from shoal.data import DataSet
from shoal.run import Run

SHOAL = Path(sys.executable).with_name("shoal")
COMPONENTS = (16, 32, 64)

EPOCHS: dict[str, dict[str, int]] = {
    # What is enough on two cores in an evening; where it is less than the preset asks for, the table says so.
    "cpu": {
        "seed-autoencoder": 50,
        "autoencoder": 10,
        "denoising-autoencoder": 10,
        "vae": 10,
        "beta-vae": 10,
        "wae": 10,
        "vq-vae": 10,
        "seed-gan": 50,
        "dcgan": 50,
        "wgan-gp": 10,
        "sngan": 10,
        "r3gan": 10,
        "cgan": 10,
    },
    "gpu": {
        "seed-autoencoder": 50,
        "autoencoder": 50,
        "denoising-autoencoder": 50,
        "vae": 50,
        "beta-vae": 50,
        "wae": 50,
        "vq-vae": 50,
        "seed-gan": 50,
        "dcgan": 50,
        "wgan-gp": 150,
        "sngan": 150,
        "r3gan": 150,
        "cgan": 150,
    },
}
SHOWN = (
    ("quality/mse", "MSE", ".4f"),
    ("quality/psnr", "PSNR, dB", ".2f"),
    ("quality/ssim", "SSIM", ".3f"),
    ("quality/nll", "NLL, nats", ".1f"),
    ("quality/active_units", "active units", ".0f"),
    ("quality/code_usage", "codes used", ".2f"),
    ("quality/bits_per_image", "bits/image", ".0f"),
)
GENERATED = (
    ("fd", "Frechet distance", ".2f"),
    ("kd", "kernel distance", ".4f"),
    ("precision", "precision", ".3f"),
    ("recall", "recall", ".3f"),
    ("density", "density", ".3f"),
    ("coverage", "coverage", ".3f"),
)


@dataclass(frozen=True)
class Trained:
    """A preset's run, finished and measured."""

    preset: str
    epochs: float
    full_epochs: float
    train_sec: float
    samples_per_sec: float
    evaluation: Mapping[str, Any]
    picture: Path


class Bench:
    """Where the runs lie, and with what they are made.

    Args:
        data: the data set.
        out: the folder of the runs.
        pictures: the folder of the pictures.
        threads: of torch.
    """

    def __init__(self, data: Path, out: Path, pictures: Path, threads: int) -> None:
        self.data = data
        self._out = out
        self._pictures = pictures
        self._environment = environment(threads)
        out.mkdir(parents=True, exist_ok=True)
        pictures.mkdir(parents=True, exist_ok=True)

    def prepare_extractor(self) -> None:
        """Train the default extractor unless there is one."""
        if not list((self.data / "extractors").glob("classifier-*")):
            self._shoal("extractor", "train", "--data", self.data)

    def trained(self, preset: str) -> bool:
        """Tell whether there is a run of a preset, however far it came."""
        return (self._out / preset / "checkpoints").is_dir()

    def row(self, preset: str, epochs: int | None) -> Trained:
        """Train a preset to so many epochs, or further to them (None: leave it as it is), and measure it."""
        num_train = DataSet.open(self.data).num_rows("train")
        run = self._out / preset
        if epochs is not None:
            self._train(preset, run, epochs * num_train)
        evaluation = run / "eval.json"
        newest = max((path.stat().st_mtime for path in (run / "checkpoints").iterdir()), default=0.0)
        if not evaluation.is_file() or evaluation.stat().st_mtime < newest:
            self._shoal("eval", run)
        measured = json.loads(evaluation.read_text())
        picture = self._pictures / f"{preset}.png"
        kind = "reconstruct" if "quality/mse" in measured["metrics"] else "sample"
        self._shoal(kind, run, "--out", picture)
        if kind == "reconstruct" and any(name.startswith("fd/") for name in measured["metrics"]):
            self._shoal("sample", run, "--out", self._pictures / f"{preset}-samples.png")
        rows = Run.open(run).metrics()
        steps = [row["samples"] - before["samples"] for before, row in pairwise([{"samples": 0}, *rows])]
        speeds = [row["speed/samples_per_sec"] for row in rows]
        return Trained(
            preset=preset,
            epochs=rows[-1]["samples"] / num_train,
            full_epochs=read_config(preset).duration_samples / num_train,
            train_sec=sum(step / speed for step, speed in zip(steps, speeds, strict=True)),
            samples_per_sec=median(speeds),
            evaluation=measured,
            picture=picture,
        )

    def _train(self, preset: str, run: Path, samples: int) -> None:
        """Train, or train on."""
        words: list[str | Path] = ["train", preset, "--data", self.data, "--local", "--out", run]
        if (run / "config.yaml").is_file():
            newest = Run.open(run).newest_checkpoint()
            if newest is not None and newest.samples >= samples:
                return
            words = ["train", "--resume", "--local", "--out", run]
        self._shoal(*words, f"duration_samples={samples}")

    def _shoal(self, *words: str | Path) -> None:
        command = [str(SHOAL), *map(str, words)]
        print("$", shlex.join(["shoal", *command[1:]]), flush=True)
        subprocess.run(command, check=True, env=self._environment, stdin=subprocess.DEVNULL)


def reconstruction_table(rows: list[Trained], yardsticks: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yield a Markdown table of the models with codes, the linear ones first."""
    yield "| model | epochs | training time | images/s | " + " | ".join(title for _, title, _ in SHOWN) + " |"
    yield "|---|---:|---:|---:|" + "---:|" * len(SHOWN)
    for name, values in yardsticks.items():
        known = {"quality/mse": values["mse"], "quality/nll": values["nll"]}
        yield f"| {name} | - | - | - | " + " | ".join(cell(known, key, form) for key, _, form in SHOWN) + " |"
    for row in rows:
        metrics = row.evaluation["metrics"]
        if "quality/mse" in metrics:
            yield f"| {opening(row)} | " + " | ".join(cell(metrics, key, form) for key, _, form in SHOWN) + " |"


def generation_table(rows: list[Trained]) -> Iterator[str]:
    """Yield a Markdown table of the models that generate, with the distance as a multiple of its floor."""
    titles = [title for _, title, _ in GENERATED]
    yield "| model | epochs | training time | images/s | FD / floor | " + " | ".join(titles) + " |"
    yield "|---|---:|---:|---:|---:|" + "---:|" * len(titles)
    for row in rows:
        metrics, extractor = row.evaluation["metrics"], row.evaluation.get("extractor")
        if not extractor or f"fd/{extractor['id']}" not in metrics:
            continue
        distance = f"fd/{extractor['id']}"
        cells = [f"{row.evaluation['details'][distance]['ratio']:.1f}"]
        for kind, _, form in GENERATED:
            name = f"{kind}/{extractor['id']}"
            detail = row.evaluation["details"].get(name, {})
            interval = f" ({detail['low']:{form}} to {detail['high']:{form}})" if detail.get("low") is not None else ""
            cells.append(cell(metrics, name, form) + (interval if kind == "fd" else ""))
        yield f"| {opening(row)} | {' | '.join(cells)} |"


def opening(row: Trained) -> str:
    """Return a row's first cells."""
    short = f" of {row.full_epochs:.0f}" if round(row.epochs) < round(row.full_epochs) else ""
    return f"`{row.preset}` | {row.epochs:.0f}{short} | {row.train_sec / 60:.1f} min | {row.samples_per_sec:,.0f}"


def cell(metrics: Mapping[str, float], name: str, form: str) -> str:
    """Return a measure as text, or a dash."""
    return f"{metrics[name]:{form}}" if name in metrics else "-"


def page(rows: list[Trained], yardsticks: Mapping[str, Mapping[str, float]], command: str, machine: str) -> str:
    """Return the whole page."""
    measured = next((row.evaluation for row in rows if row.evaluation.get("extractor")), None)
    lines = ["# Quality of the presets, on Fashion-MNIST", "", f"Made by `{command}` on {machine}.", ""]
    lines += [
        "MSE, PSNR and SSIM are of pixels in [0, 1]; NLL is a density over such pixels, importance-sampled where a",
        "model has a posterior; PCA-k is probabilistic PCA with k components. Training time leaves out start-up,",
        "checkpoints and measuring; the machine had other work to do meanwhile.",
        "",
        *reconstruction_table(rows, yardsticks),
        "",
    ]
    if measured:
        extractor = measured["extractor"]
        floors = [d["floor"] for name, d in measured["details"].items() if name == f"fd/{extractor['id']}"]
        lines += [
            f"Generated images, {measured['num_samples']:,} against as many of the test split, in the features of"
            f" `{extractor['id']}` (accuracy {extractor.get('accuracy') or float('nan'):.4f}). The floor is the same"
            f" distance between real images of train and test: {floors[0]:.2f}. In brackets: the 95 %"
            " interval of the bootstrap.",
            "",
            *generation_table(rows),
            "",
        ]
    for row in rows:
        lines += [f"## {row.preset}", "", f"![{row.preset}](images/quality/{row.picture.name})", ""]
        more = row.picture.with_name(f"{row.preset}-samples.png")
        if more.is_file():
            lines += [f"![samples of {row.preset}](images/quality/{more.name})", ""]
    return "\n".join(lines)


def main() -> None:
    """Make every row that was asked for and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="Fashion-MNIST as a data set")
    parser.add_argument("--out", type=Path, default=Path("build/quality"), help="folder of the runs")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of quality.md and images/quality/")
    parser.add_argument("--budget", choices=sorted(EPOCHS), default="cpu")
    parser.add_argument("--epochs", type=int, help="of every preset, instead of the budget's; 1 to try it out")
    parser.add_argument("--as-is", action="store_true", help="measure the runs in --out and train nothing")
    parser.add_argument("--only", nargs="+", choices=list(EPOCHS["cpu"]), help="some presets")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 1)), help="of torch")
    asked = parser.parse_args()
    machine = describe_machine()
    bench = Bench(asked.data, asked.out, asked.docs / "images" / "quality", asked.threads)
    bench.prepare_extractor()
    data = DataSet.open(asked.data)
    train, test = pixels(data, "train"), pixels(data, "test")
    yardsticks = {f"PCA-{components}": linear_yardstick(train, test, components) for components in COMPONENTS}
    del train, test
    budget = EPOCHS[asked.budget]
    if asked.as_is:
        rows = [bench.row(preset, None) for preset in asked.only or budget if bench.trained(preset)]
    else:
        rows = [bench.row(preset, asked.epochs or budget[preset]) for preset in asked.only or budget]
    command = shlex.join(["python", "benchmarks/quality.py", *sys.argv[1:]])
    (asked.docs / "quality.md").write_text(page(rows, yardsticks, command, machine))
    print(asked.docs / "quality.md")


if __name__ == "__main__":
    main()
