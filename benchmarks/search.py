"""Search with several methods and seeds at equal total samples, and measure what each found on the test split.

Every search is the command that a user would type: ``shoal tune benchmarks/search.yaml`` with overrides. What is done
already is not done again, so that the command can be stopped and given again.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib as mpl
from throughput import describe_machine, environment

from shoal.data import DataSet
from shoal.quality.store import default_extractor, kept
from shoal.run import read_rows
from shoal_ray.population.search_config import read_search

mpl.use("Agg")
import matplotlib.pyplot as plt  # after the choice of a backend without a display

SHOAL = Path(sys.executable).with_name("shoal")
SEARCH = Path(__file__).with_name("search.yaml")
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "pbt": ("PBT over lr and latent", ()),
    "pbt-lr": ("PBT over lr, latent 32", ("space.nets.latent=null",)),
    "random": ("random search", ("algorithm=random",)),
    # Rungs after 1, 3 and 9 generations. A third would pass each if all came together; coming one by one more do: 27
    # members took between 70 and 123 generations, 8 that train to their end take 80. The page says how many samples.
    "asha": ("ASHA", ("algorithm=asha", "population=27", "reduction_factor=3")),
}
PRESETS = {"preset": "preset, as long as a member", "preset-long": "preset, as long as the whole search"}
"""The preset's own learning rate and schedule, latent 32, on the same network."""
MEASURES = ("quality/elbo", "quality/nll", "fd", "kd")


class Bench:
    """Where the searches lie, and with what they are made."""

    def __init__(self, data: Path, out: Path) -> None:
        self.data = data
        self.out = out
        self.search = read_search(SEARCH)
        self._environment = environment(1)
        out.mkdir(parents=True, exist_ok=True)
        opened = DataSet.open(data)
        if not kept(opened):
            self._shoal("extractor", "train", "--data", data)
        if len(kept(opened)) < 2:
            self._shoal("extractor", "train", "--data", data, "--seed", "1")
        chosen = default_extractor(opened)
        self.judge = next(facts for _, facts in kept(opened) if facts.id != chosen.id)

    def find(self, method: str, seed: int) -> dict[str, Any]:
        """Search, or look at what was found before; return the measures on the test split."""
        path = self.out / f"{method}-{seed}"
        result = path / "result.json"
        if not result.is_file():
            run = self._train(method, seed, path) if method in PRESETS else self._tune(method, seed, path)
            self._shoal("eval", run, "--data", self.data, "--extractor", self.judge.directory_name)
            measured = json.loads((run / "eval.json").read_text())
            rows = read_rows(path / "population.jsonl")
            samples = len(rows) * self.search.generation_samples if rows else measured["samples"]
            result.write_text(json.dumps({"metrics": measured["metrics"], "samples": samples}))
        found: dict[str, Any] = json.loads(result.read_text())
        return found

    def _tune(self, method: str, seed: int, path: Path) -> Path:
        words = ["tune", SEARCH, f"seed={seed}", f"run.seed={seed}", *METHODS[method][1], "--data", self.data]
        again = ["tune", "--resume"] if (path / "search.yaml").is_file() else words
        self._shoal(*again, "--out", path)
        return path / "best"

    def _train(self, method: str, seed: int, path: Path) -> Path:
        search = self.search
        members = search.population if method == "preset-long" else 1
        nets = "nets={name: mlp, hidden: [256], latent: 32}"
        words = ["train", "vae", nets, f"seed={seed}", f"duration_samples={members * search.samples}"]
        words += ["data.split=train[:90%]", "report.quality_every_samples=0", "report.images_every_samples=0"]
        self._shoal(*words, "--data", self.data, "--local", "--out", path)
        return path

    def _shoal(self, *words: str | Path) -> None:
        command = [str(SHOAL), *map(str, words)]
        print("$", shlex.join(["shoal", *command[1:]]), flush=True)
        subprocess.run(command, check=True, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def measure(metrics: Mapping[str, float], name: str) -> float:
    """Return a measure, of which the extractor's name may be left out."""
    return next(value for key, value in metrics.items() if key == name or key.startswith(f"{name}/"))


def better(name: str, one: float, other: float) -> bool:
    """Tell whether one value of a measure is better than another."""
    return one > other if name == "quality/elbo" else one < other


def table(found: Mapping[str, list[dict[str, Any]]], seeds: int) -> Iterator[str]:
    """Yield a Markdown table: mean and standard deviation over seeds, and how often PBT over both was better."""
    yield "| method | samples in all | " + " | ".join(f"test {name} | PBT better" for name in MEASURES) + " |"
    yield "|---|---:|" + "---:|---:|" * len(MEASURES)
    names = {name: title for name, (title, _) in METHODS.items()} | PRESETS
    for method, results in found.items():
        cells = [f"{mean(result['samples'] for result in results):,.0f}"]
        for name in MEASURES:
            values = [measure(result["metrics"], name) for result in results]
            spread = f" ± {stdev(values):.3g}" if len(values) > 1 else ""
            ours = [measure(result["metrics"], name) for result in found["pbt"]]
            wins = sum(better(name, one, other) for one, other in zip(ours, values, strict=True))
            cells += [f"{mean(values):.4g}{spread}", "-" if method == "pbt" else f"{wins} of {seeds}"]
        yield f"| {names[method]} | " + " | ".join(cells) + " |"


def curve(path: Path, generation_samples: int) -> tuple[list[int], list[float]]:
    """Return the best fitness so far over the samples of all members together."""
    samples: list[int] = []
    best: list[float] = []
    for number, row in enumerate(read_rows(path / "population.jsonl"), 1):
        fitness = row["fitness"] if row["fitness"] is not None else float("-inf")
        samples.append(number * generation_samples)
        best.append(max(fitness, best[-1]) if best else fitness)
    return samples, best


def draw(bench: Bench, seeds: range, picture: Path) -> None:
    """Draw the best so far of every search."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for color, (method, (title, _)) in zip(plt.cm.tab10.colors, METHODS.items(), strict=False):  # type: ignore[attr-defined]  # made at run time
        for seed in seeds:
            samples, best = curve(bench.out / f"{method}-{seed}", bench.search.generation_samples)
            axes.plot(samples, best, color=color, alpha=0.8, linewidth=1.2, label=title if seed == seeds[0] else None)
    axes.set(xlabel="samples of all members together", ylabel="best fitness so far (held-out ELBO, nats)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)


def main() -> None:
    """Search with every method and seed, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="Fashion-MNIST as a data set")
    parser.add_argument("--out", type=Path, default=Path("build/search"), help="folder of the searches")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of search.md and images/search/")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[*METHODS, *PRESETS], default=[*METHODS, *PRESETS])
    asked = parser.parse_args()
    bench = Bench(asked.data, asked.out)
    seeds = range(asked.seeds)
    found: dict[str, list[dict[str, Any]]] = {method: [] for method in asked.only}
    for seed in seeds:
        for method in asked.only:
            found[method].append(bench.find(method, seed))
            print(json.dumps({"method": method, "seed": seed, **found[method][-1]["metrics"]}), flush=True)
    picture = asked.docs / "images" / "search" / "best.png"
    draw(bench, seeds, picture)
    command = shlex.join(["python", "benchmarks/search.py", *sys.argv[1:]])
    lines = [
        "# Searches compared, on Fashion-MNIST",
        "",
        f"Made by `{command}` on {describe_machine()}, with {os.cpu_count()} processors; `benchmarks/search.yaml` says",
        "what is searched. Mean and standard deviation over seeds; distances are in the features of"
        f" `{bench.judge.id}`, which no search has used.",
        "",
        *table(found, asked.seeds),
        "",
        "![best so far](images/search/best.png)",
        "",
    ]
    page = asked.docs / "search.md"
    page.write_text("\n".join(lines))
    print(page)


if __name__ == "__main__":
    main()
