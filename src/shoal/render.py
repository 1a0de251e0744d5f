"""Pictures of a model: grids of samples, and originals above their reconstructions. uint8 [H, W, C]."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from shoal.config import RunConfig
from shoal.data import DataSet
from shoal.noise import Noise
from shoal.objectives import Generates, Objective, Reconstructs
from shoal.pixels import to_float, to_uint8
from shoal.quality.held_out import held_out_split
from shoal.state import State

Picture = np.ndarray
"""uint8 [H, W, C], C 1 or 3."""

GAP = 2
"""Pixels between the images of a grid."""


def grid(images: np.ndarray | Tensor, columns: int) -> Picture:
    """Lay out images, uint8 [N, C, H, W], row by row on white."""
    pixels = np.asarray(images)
    num, channels, height, width = pixels.shape
    lines = -(-num // columns)
    canvas = np.full((lines * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels), 255, np.uint8)
    for index in range(num):
        top, left = index // columns * (height + GAP), index % columns * (width + GAP)
        canvas[top : top + height, left : left + width] = pixels[index].transpose(1, 2, 0)
    return canvas


def above(originals: np.ndarray | Tensor, reconstructions: np.ndarray | Tensor, columns: int) -> Picture:
    """Lay out lines of originals, each with the line of its reconstructions below; uint8 [N, C, H, W] both."""
    first, second = np.asarray(originals), np.asarray(reconstructions)
    lines = [block[start : start + columns] for start in range(0, len(first), columns) for block in (first, second)]
    padded = [np.concatenate([line, np.full((columns - len(line), *line.shape[1:]), 255, np.uint8)]) for line in lines]
    return grid(np.concatenate(padded), columns)


def sample_columns(objective: Objective, num_classes: int, otherwise: int = 8) -> int:
    """Return how many samples go side by side: one of each class, where the model tells them apart."""
    return num_classes if objective.needs_labels and 2 <= num_classes <= 16 else otherwise


@contextmanager
def inference(nets: Mapping[str, nn.Module]) -> Iterator[None]:
    """Run without gradients and with the statistics of evaluation; training mode comes back after."""
    training = {name: net.training for name, net in nets.items()}
    try:
        for net in nets.values():
            net.eval()
        with torch.no_grad():
            yield
    finally:
        for name, net in nets.items():
            net.train(training[name])


class Pictures:
    """The same images and the same noise at every tick, so that one can watch the model learn."""

    def __init__(
        self, objective: Objective, state: State, data: DataSet, config: RunConfig, device: torch.device
    ) -> None:
        # The averaged networks where there are some.
        self._objective = objective.using(state.ema)
        self._range = config.data.range
        self._device = device
        split = held_out_split(config, data)
        self._originals = data.rows(split, 0, min(16, data.num_rows(split))).copy()
        self._columns = sample_columns(objective, data.num_classes)
        num = 8 * self._columns
        self._noise, self._num = Noise(config.seed, -1, num, slice(0, num), device), num

    def draw(self) -> dict[str, Picture]:
        """Return the pictures that the objective can make: ``images/samples``, ``images/reconstructions``."""
        objective, drawn = self._objective, {}
        with inference(objective.nets):
            if isinstance(objective, Generates):
                samples = to_uint8(objective.sample(self._num, self._noise), self._range).cpu()
                drawn["images/samples"] = grid(samples, self._columns)
            if isinstance(objective, Reconstructs):
                x = to_float(torch.from_numpy(self._originals).to(self._device), self._range)
                again = to_uint8(objective.decode(objective.encode(x)), self._range).cpu()
                drawn["images/reconstructions"] = above(self._originals, again, 8)
        return drawn
