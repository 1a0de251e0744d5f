"""Train Shoal's presets and what a user would pick instead, side by side, and judge all by the same code.

pythae's VAE and VQ-VAE through its own TrainingPipeline, and the GAN of Ray's example ``pbt_dcgan_mnist`` trained
alone. All see the same images as often, in equal batches, with as many threads. Speed is taken in short rounds, turn
and turn about; quality after one long run each.
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from statistics import median

import torch
from arena import CONTESTS, PACKAGES, Arena, Contender, Trial, missing_packages, outputs
from judging import Judge
from throughput import describe_machine

from shoal.data import DataSet
from shoal.errors import ShoalError
from shoal.pixels import to_uint8
from shoal.quality.classifier import train_extractor
from shoal.quality.store import default_extractor, keep, kept, named_extractor
from shoal.recorder import save_png
from shoal.render import grid

SHAPE = (1, 28, 28)
PICTURED, COLUMNS = 64, 8
LEAST_SAMPLES = 1_000
"""Ten batches or so: there is a first report, and others after it."""
SHOWN = (
    ("parameters", "parameters", ",.0f"),
    ("mse", "test MSE", ".5f"),
    ("psnr", "PSNR, dB", ".2f"),
    ("bits_per_image", "bits/image", ".0f"),
    ("fd", "Frechet distance", ".4g"),
    ("fd_over_floor", "over its floor", ".1f"),
)


@dataclass
class Row:
    """What is known of a contender: its timed rounds, its long run, and the measures after that."""

    contender: Contender
    rounds: list[Trial] = field(default_factory=list)
    whole: Trial | None = None
    measures: dict[str, float] = field(default_factory=dict)

    @property
    def timed(self) -> list[Trial]:
        """The rounds, or the long run where there were none."""
        return self.rounds or ([self.whole] if self.whole else [])


def contest(name: str, arena: Arena, judge: Judge, asked: argparse.Namespace) -> list[Row]:
    """Time all contenders in rounds, then train each for the whole budget and judge it."""
    rows = [Row(contender) for contender in CONTESTS[name]]
    for number in range(asked.rounds):
        shift = number % len(rows)
        for row in (*rows[shift:], *rows[:shift]):  # none is always the first
            tell(f"round {number + 1} of {asked.rounds}: {row.contender.label}")
            with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
                row.rounds.append(arena.train(row.contender, asked.round_samples, number, Path(folder), judged=False))
    for number, row in enumerate(rows, start=1):
        tell(f"{asked.epochs:g} epochs: {row.contender.label}")
        with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
            row.whole = arena.train(row.contender, asked.samples, 0, Path(folder), judged=True)
            made = outputs(row.contender, Path(folder), judge.pixels)
        row.measures = judge(made)
        shown = made.reconstructions if made.samples is None else made.samples
        if shown is not None:
            save_png(asked.out / f"{name}-{number}.png", grid(to_uint8(shown[:PICTURED], "unit"), COLUMNS))
    return rows


def tell(what: str) -> None:
    """Say what is being done."""
    print(what, file=sys.stderr, flush=True)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a Markdown table of a contest; a ratio is the median over rounds, of this one's time to the first one's."""
    shown = [measure for measure in SHOWN if any(measure[0] in row.measures for row in rows)]
    titles = [title for _, title, _ in shown]
    titles += ["samples/s", "slowest to fastest", "first is faster by", "CPU ms/image", "by CPU time", "long run"]
    yield f"| model | {' | '.join(titles)} |"
    yield "|---|" + "---:|" * len(titles)
    for row in rows:
        speeds = [trial.samples_per_sec for trial in row.timed]
        pairs = list(zip(rows[0].timed, row.timed, strict=True))
        cells = [f"{row.measures[key]:{form}}" if key in row.measures else "-" for key, _, form in shown]
        cells += [f"{median(speeds):,.0f}", f"{min(speeds):,.0f} to {max(speeds):,.0f}"]
        cells += [f"{median(first.samples_per_sec / this.samples_per_sec for first, this in pairs):.2f}"]
        cells += [f"{median(trial.cpu_ms for trial in row.timed):.2f}"]
        known = all(trial.cpu_ms for pair in pairs for trial in pair)
        cells += [f"{median(this.cpu_ms / first.cpu_ms for first, this in pairs):.2f}" if known else "-"]
        cells += [f"{row.whole.total_sec / 60:.1f} min" if row.whole else "-"]
        yield f"| {row.contender.label} | {' | '.join(cells)} |"


def page(results: dict[str, list[Row]], judge: Judge, asked: argparse.Namespace, machine: str) -> str:
    """Return the whole page."""
    lines = ["# Shoal and others on the same data", "", f"Made by `{asked.command}` on {machine}.", ""]
    rounds = f"the median of {asked.rounds} rounds of {asked.round_samples:,} images" if asked.rounds else "of that run"
    lines += [
        f"Trained on {asked.samples:,} images ({asked.epochs:g} epochs), {asked.threads} thread(s). Speed: {rounds},"
        f" start-up left out. Measures on {len(judge.pixels):,} test images; Frechet distance of as many samples in the"
        f" features of `{judge.extractor.id}`, whose floor between real images of train and test is {judge.floor:.4g}.",
        "",
    ]
    for name, rows in results.items():
        lines += [f"## {name}", "", *table(rows), ""]
        lines += [f"![{row.contender.label}]({name}-{number}.png)" for number, row in enumerate(rows, start=1)] + [""]
    return "\n".join(lines)


def versions(folder: Path) -> str:
    """Return what the others are."""
    found = [d for d in distributions(path=[str(folder), *sys.path]) if d.name == "pythae"]
    return f"pythae {found[0].version}" if found else "no pythae"


def main() -> None:
    """Hold the contests that were asked for; write and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="data set of 28x28 grey images, e.g. Fashion-MNIST")
    parser.add_argument("--only", default=",".join(CONTESTS), help=f"some of {','.join(CONTESTS)}")
    parser.add_argument("--epochs", type=float, default=10, help="of the long runs; below 1 to try it out")
    parser.add_argument("--rounds", type=int, default=3, help="of timing; 0: time the long runs")
    parser.add_argument("--round-samples", type=int, default=12_000, help="images trained on in a round")
    parser.add_argument("--judged", type=int, default=10_000, help="images to reconstruct and to generate")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for all")
    parser.add_argument("--extractor", help="of the Frechet distance. (default: the data set's)")
    parser.add_argument("--others-path", type=Path, default=Path("build/others-packages"), help="where the others are")
    parser.add_argument("--out", type=Path, default=Path("build/others"), help="folder of others.json and others.md")
    asked = parser.parse_args()
    names = asked.only.split(",")
    if unknown := [name for name in names if name not in CONTESTS]:
        parser.error(f"--only {unknown[0]} is none of {', '.join(CONTESTS)}")
    if missing := missing_packages(names, asked.others_path):
        install = f"{sys.executable} -m pip install --no-deps --target {asked.others_path} {PACKAGES}"
        parser.error(
            f"{', '.join(missing)} not found; into a folder of their own, so that nothing else changes:\n{install}"
        )
    data = DataSet.open(asked.data)
    if data.shape != SHAPE:
        parser.error(f"--data {asked.data} has images of {data.shape}; pythae's networks take {SHAPE}")
    if not 2 <= asked.judged <= data.num_rows("test"):
        parser.error(
            f"--judged {asked.judged} must be from 2 to the {data.num_rows('test'):,} images of the test split"
        )
    if asked.epochs <= 0 or (asked.epochs > 1 and asked.epochs % 1):
        parser.error(f"--epochs {asked.epochs:g} must be a whole number, or a fraction below 1")
    asked.samples = round(asked.epochs * data.num_rows("train"))
    if least := [n for n in (asked.samples, *[asked.round_samples] * (asked.rounds > 0)) if n < LEAST_SAMPLES]:
        parser.error(f"{least[0]} images are too few to time; --epochs and --round-samples must give {LEAST_SAMPLES:,}")
    asked.command = shlex.join(["python", "benchmarks/others.py", *sys.argv[1:]])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    machine = f"{describe_machine()}, {versions(asked.others_path)}; {device}"
    torch.set_num_threads(asked.threads)
    if asked.extractor is None and not kept(data):
        tell("training the extractor")
        keep(train_extractor(data), data)
    extractor = named_extractor(asked.extractor, data) if asked.extractor else default_extractor(data)
    judge = Judge(data, extractor, asked.judged)
    arena = Arena(asked.data, asked.threads, asked.others_path, asked.judged)
    asked.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[Row]] = {}
    for name in names:
        results[name] = contest(name, arena, judge, asked)
        found = {name: [asdict(row) for row in rows] for name, rows in results.items()}
        facts = {"command": asked.command, "machine": machine, "extractor": extractor.id, "floor": judge.floor}
        (asked.out / "others.json").write_text(json.dumps({**facts, "contests": found}, indent=1) + "\n")
        (asked.out / "others.md").write_text(page(results, judge, asked, machine))
    print((asked.out / "others.md").read_text())


if __name__ == "__main__":
    try:
        main()
    except ShoalError as error:
        sys.exit(f"others.py: error: {error}")
