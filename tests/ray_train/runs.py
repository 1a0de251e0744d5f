"""The run that the tests disturb, and what is looked up of it."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from tests.processes import descendants

from shoal.checkpoint import newest

DURATION = 30_000
"""In samples: two thousand steps, long enough to be disturbed in the middle."""
WORDS = (
    "seed-autoencoder",
    "nets.hidden=[8]",
    "nets.latent=3",
    "batch=15",  # over two workers: 7 and 8
    f"duration_samples={DURATION}",
    "report.every_samples=600",
    "report.images_every_samples=0",
    "checkpoint.every_samples=3000",
)


def workers_of(driver: int) -> list[int]:
    """Return the pids of the DDP workers that descend from a driver process."""
    return sorted(pid for pid, title in descendants(driver).items() if b"ray::RayTrainWorker" in title)


def rows(run: Path) -> list[dict[str, float]]:
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def assert_same_end(run: Path, other: Path) -> None:
    one, two = newest(run / "checkpoints"), newest(other / "checkpoints")
    assert one is not None
    assert two is not None
    assert one.samples == two.samples == DURATION
    assert one.stream == two.stream
    expected, found = one.tensors(), two.tensors()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    steps = [row["samples"] for row in rows(other)]
    assert steps == sorted(set(steps))


def starts(run: Path) -> list[dict[str, Any]]:
    """Return what was noted of each group of workers that went on with a run."""
    file = run / "starts.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def workers_on(raylets: Collection[int]) -> dict[int, int]:
    """Return the DDP workers on nodes of a cluster, and which raylet each belongs to; most are forks of a nursery."""
    found: dict[int, int] = {}
    for raylet in raylets:
        parents = {raylet, *nurseries_of(raylet)}
        for parent in parents:
            found |= {pid: raylet for pid, title in descendants(parent).items() if b"ray::RayTrainWorker" in title}
    return found


def nurseries_of(raylet: int) -> list[int]:
    """Return the processes that fork the workers of a node."""
    ending = f"\0{raylet}\0".encode()
    return [
        pid
        for pid, title in descendants(0).items()
        if b"shoal_ray.nursery\0--of-node" in title and title.endswith(ending)
    ]
