"""The images that are measured, in blocks that the workers share out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Self

import numpy as np
import torch
from torch import Tensor

from shoal.data import DataSet
from shoal.errors import DataError
from shoal.noise import Noise
from shoal.world import World

BLOCK_IMAGES = 500
BLOCK_PIXELS = 1_536_000
"""At most in a block, so that large images fit into memory: 500 of 3x32x32."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, and of how many images (this worker's) it is done, done and all."""


@dataclass(frozen=True)
class Block:
    """Some of the images measured; the same ones at any number of workers.

    Attributes:
        index: number of the block.
        rows: which of the images, from 0.
        size: images in a full block; the last one may have fewer.
    """

    index: int
    rows: slice
    size: int

    @property
    def num(self) -> int:
        """Images in this block."""
        return int(self.rows.stop - self.rows.start)

    def noise(self, device: torch.device) -> Noise:
        """Return the block's noise: the same for every model that is ever measured."""
        return Noise(0, self.index, self.size, slice(0, self.num), device)


@dataclass(frozen=True)
class Sample:
    """So many images of a split: all, or a random choice that is the same at every call.

    A choice, because the first images of a split may all be of one class.

    Attributes:
        data: the data set.
        split: of it.
        ids: global ids, int64 [n], ascending.
    """

    data: DataSet
    split: str
    ids: np.ndarray

    @classmethod
    def of(cls, data: DataSet, split: str, num: int | None = None, *, after: int = 0) -> Self:
        """Choose ``num`` images, or take all; those of ``after=n`` are none of the first n that would be chosen.

        Raises:
            DataError: no such split, or fewer images in it.
        """
        rows = data.num_rows(split)
        num = rows - after if num is None else num
        if not 1 <= num <= rows - after:
            raise DataError(
                f"{num} images were to be measured, but split '{split}' of {data.location} has {rows - after};"
                f" use --num {rows - after}, or fewer"
            )
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(0)).numpy()
        return cls(data, split, data.span(split).first + np.sort(order[after : after + num]))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def pixels(self, block: Block, device: torch.device) -> Tensor:
        """Return a block's images, uint8 [n, C, H, W]."""
        return torch.from_numpy(self.data.fetch(self.ids[block.rows])).to(device)

    def labels(self) -> Tensor | None:
        """Return the class of each image, int64 [n] with -1 for none, or None in a data set without labels."""
        labels = self.data.labels_at(self.ids)
        return None if labels is None else torch.from_numpy(labels.astype(np.int64))


@dataclass(frozen=True)
class Workshare:
    """Work on blocks of images, done by the workers of a world together.

    Attributes:
        world: worker r of s takes blocks r, r + s, r + 2 s and so on.
        shape: of the images.
        progress: told after each block.
    """

    world: World
    shape: tuple[int, int, int]
    progress: Progress = lambda what, done, total: None

    @property
    def home(self) -> torch.device:
        """Where tables lie: on the GPU if it knows float64, else on the CPU."""
        return self.world.device if self.world.device.type == "cuda" else torch.device("cpu")

    def tables(
        self, what: str, num: int, work: Callable[[Block], Mapping[str, Tensor]], *, weight: int = 1
    ) -> dict[str, Tensor]:
        """Return what ``work`` says of every image, gathered from all workers: float64 [num, …] by name, on each.

        Every worker calls this. Each entry is computed by one worker, from the same block of images whatever the
        number of workers, and added to zeros: the tables do not depend on that number.

        Args:
            what: for the progress.
            num: images.
            work: returns tensors of [rows of the block, …] by name.
            weight: how many times over ``work`` holds each image at once; blocks are so much smaller.

        Raises:
            ShoalError: that of any worker, on all.
        """
        mine = self._blocks(num, weight)[self.world.rank :: self.world.size]
        total = sum(block.num for block in mine)

        def run() -> list[tuple[Block, dict[str, Tensor]]]:
            found, done = [], 0
            self.progress(what, 0, total)
            for block in mine:
                found.append((block, {name: exact(values).to(self.home) for name, values in work(block).items()}))
                done += block.num
                self.progress(what, done, total)
            return found

        found = self.world.together(run)
        # A worker without a block does not know what the others found.
        shapes = self.world.first_says(lambda: {name: values.shape[1:] for name, values in found[0][1].items()})
        tables = {
            name: torch.zeros((num, *rest), dtype=torch.float64, device=self.home) for name, rest in shapes.items()
        }
        for block, values in found:
            for name, table in tables.items():
                table[block.rows] = values[name]
        return {name: self.world.sum(table) for name, table in tables.items()}

    def _blocks(self, num: int, weight: int) -> list[Block]:
        size = max(1, min(BLOCK_IMAGES, BLOCK_PIXELS // prod(self.shape)) // weight)
        starts = range(0, num, size)
        return [Block(index, slice(start, min(start + size, num)), size) for index, start in enumerate(starts)]


def exact(values: Tensor) -> Tensor:
    """Return values as float64, where they lie if that device knows float64, else on the CPU."""
    return values.detach().cpu().double() if values.device.type == "mps" else values.detach().double()
