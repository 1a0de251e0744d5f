"""Means over the samples of a tick: summed on the device, reduced over the workers once."""

from collections.abc import Mapping

import torch
from torch import Tensor

from shoal.world import World


class Meter:
    """Collects named measures of batches; ``take`` returns their means over all images and workers."""

    def __init__(self, world: World) -> None:
        self._world = world
        # MPS has no float64.
        self._dtype = torch.float32 if world.device.type == "mps" else torch.float64
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    @torch.no_grad()
    def add(self, scalars: Mapping[str, Tensor], rows: int) -> None:
        """Add a batch's measures: [rows] with a value per image, or a scalar that stands for all of them."""
        for name, value in scalars.items():
            value = value.detach()
            total = value.sum() if value.ndim else value * rows
            if name not in self._sums:
                self._sums[name] = torch.zeros((), dtype=self._dtype, device=value.device)
                self._counts[name] = 0
            self._sums[name] += total
            self._counts[name] += rows

    def take(self) -> dict[str, float]:
        """Return the means since the last call, the same on every worker, and start anew. Waits for the device once."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        counts = torch.tensor([self._counts[name] for name in names], dtype=self._dtype, device=self._world.device)
        table = self._world.sum(torch.stack([torch.stack([self._sums[name] for name in names]), counts]))
        self._sums, self._counts = {}, {}
        return dict(zip(names, (table[0] / table[1]).tolist(), strict=True))
