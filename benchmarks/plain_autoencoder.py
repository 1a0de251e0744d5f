"""The loop that ``throughput.py`` compares with: what a good user writes for data that fits into memory.

Network, loss, optimizer and batch are those of ``shoal train seed-autoencoder``. Prints one JSON object.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import nn

from shoal.data import DataSet

BATCH = 256


def train(images: torch.Tensor, num_samples: int, every_samples: int) -> tuple[list[tuple[int, float]], float]:
    """Train 784-64-32-64-784 on uint8 [n, 784]; return when each multiple was passed, and the last mean loss."""
    net = nn.Sequential(
        *(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 32), nn.Sigmoid()),
        *(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 784), nn.Sigmoid()),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    ticks: list[tuple[int, float]] = []
    samples, seen, total, mean = 0, 0, torch.zeros(()), 0.0
    while samples < num_samples:
        order = torch.randperm(len(images))
        for start in range(0, len(images), BATCH):
            x = images.index_select(0, order[start : start + BATCH]).float().div_(255)
            loss = nn.functional.mse_loss(net(x), x)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            optimizer.step()
            total += loss.detach() * len(x)
            seen += len(x)
            before, samples = samples, samples + len(x)
            if samples // every_samples > before // every_samples:
                mean, seen, total = total.item() / seen, 0, torch.zeros(())
                ticks.append((samples, time.time()))
            if samples >= num_samples:
                break
    return ticks, mean


def main() -> None:
    """Train on the training split of a data set and print when the ticks came."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--every-samples", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    dataset = DataSet.open(asked.data)
    images = torch.from_numpy(dataset.rows("train", 0, dataset.num_rows("train"))).flatten(1)
    ticks, loss = train(images, asked.samples, asked.every_samples)
    print(json.dumps({"ticks": ticks, "loss": loss}))


if __name__ == "__main__":
    main()
