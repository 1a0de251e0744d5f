"""Randomness that belongs to the global batch, not to the rank."""

from collections.abc import Callable
from hashlib import blake2b

import torch
from torch import Tensor


class Noise:
    """The random draws of one global batch, of which a worker takes its rows.

    For batch k each purpose has a generator seeded by (seed, purpose, k) that draws for the whole global batch, so 1, 2
    or 3 workers see the same noise in the same positions, and a resumed run sees what it would have seen.

    Args:
        seed: of the run.
        index: number k of the global batch.
        batch: images in the global batch.
        rows: this worker's rows of it.
        device: where to draw; a CPU and a GPU draw different numbers from one seed.
    """

    def __init__(self, seed: int, index: int, batch: int, rows: slice, device: torch.device | str = "cpu") -> None:
        self._key = f"{seed}/{index}/"
        self._batch = batch
        self._rows = rows
        self._generator = torch.Generator(device)

    def _seeded(self, purpose: str) -> torch.Generator:
        digest = blake2b((self._key + purpose).encode(), digest_size=8).digest()
        return self._generator.manual_seed(int.from_bytes(digest) >> 1)  # torch takes 63 bits

    def normal(self, purpose: str, size: int) -> Tensor:
        """Draw standard normals, [n, size] float32 for this worker's n rows.

        Drawn as [size, batch], so that a larger latent keeps the noise of its old dimensions.
        """
        return self._rows_of(torch.randn, purpose, size)

    def uniform(self, purpose: str, size: int) -> Tensor:
        """Draw from [0, 1), [n, size] float32 for this worker's n rows."""
        return self._rows_of(torch.rand, purpose, size)

    def uniform_for_all(self, purpose: str, size: int) -> Tensor:
        """Draw from [0, 1), [size] float32, the same on every worker: a choice that belongs to no image."""
        generator = self._seeded(purpose)
        return torch.rand(size, generator=generator, device=generator.device)

    def _rows_of(self, draw: Callable[..., Tensor], purpose: str, size: int) -> Tensor:
        generator = self._seeded(purpose)
        # Whole vectors of 16, or torch draws the end of a tensor otherwise than the middle of a larger one.
        drawn = draw(size, -(-self._batch // 16) * 16, generator=generator, device=generator.device)
        return drawn[:, : self._batch][:, self._rows].T
