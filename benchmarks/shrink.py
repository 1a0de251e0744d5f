"""Halve the latent of trained models, and see how soon they are as good as before: at once, and after more training."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from shoal.config import read_config, with_overrides
from shoal.quality.monitor import Monitor
from shoal.session import Session
from shoal.world import World

NETS = ("nets={name: mlp, hidden: [256]}", "optim.lr=2e-3", "optim.schedule=constant", "batch=128")
CASES = (
    ("seed-autoencoder", 16, 8, "quality/mse"),
    ("seed-autoencoder", 32, 16, "quality/mse"),
    ("vae", 16, 8, "quality/elbo"),
    ("vae", 64, 32, "quality/elbo"),
)
DONOR_SAMPLES, MORE_SAMPLES = 60_000, 15_000
"""A donor's training, and half a generation of the shipped searches."""


def halve(data: Path, preset: str, large: int, small: int, metric: str, overrides: Sequence[str]) -> list[float]:
    """Return a measure of the donor, of the model with the smaller latent at once, and after half a generation."""
    common = ["report.images_every_samples=0", "report.quality_every_samples=1e9", "checkpoint.every_samples=0"]
    config = read_config(preset, [*overrides, *common, f"nets.latent={large}", "duration_samples=1e6"])
    with Session(config, data, World.local("cpu")) as session:
        donor = list(session.advance(DONOR_SAMPLES))[-1].scalars[metric]
        smaller = with_overrides(config, [f"nets.latent={small}"])
        session.become(smaller, session.tensors(), samples=session.samples, made_by=config)
        at_once = Monitor(session.objective, smaller, session.data, session.world).measure()[metric]
        after = list(session.advance(DONOR_SAMPLES + MORE_SAMPLES))[-1].scalars[metric]
    return [donor, at_once, after]


def main() -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="Fashion-MNIST as a data set")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"| preset | latent | measure | donor | at once | after {MORE_SAMPLES:,} more |\n|---|---|---|---:|---:|---:|"
    )
    for preset, large, small, metric in CASES:
        values = halve(asked.data, preset, large, small, metric, NETS)
        cells = " | ".join(f"{value:.4g}" for value in values)
        print(f"| {preset} | {large} -> {small} | {metric} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
