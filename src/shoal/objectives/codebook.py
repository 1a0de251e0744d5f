"""A codebook that follows the vectors it stands for (van den Oord et al. 2017, arXiv:1711.00937, appendix A.1)."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from shoal.noise import Noise
from shoal.objectives.base import Batch

LEAST_COUNT = 1e-12
"""What the use of a code does not fall below, so that 0 says that the code was never filled."""


class Codebook(nn.Module):
    """``num_codes`` vectors, each the moving average of what was nearest to it. No gradient trains it.

    It consists of buffers, which stay equal on all workers because every statistic is of the global batch. It starts
    empty; for each batch come ``restart``, which fills it the first time, ``nearest`` and ``follow``.

    Args:
        num_codes: K.
        size: of a vector, D.
        decay: of the averages, by the batch.
        dead_below: the use below which a code is dead, as a share of what each has where all are used alike.
        revive: whether dead codes move to where vectors are.
    """

    latent_axes: ClassVar = {"vectors": 1, "sums": 1}

    vectors: Tensor
    """[K, D]."""
    counts: Tensor
    """[K]: how many vectors of a batch chose the code, averaged over batches; 0 before it is filled."""
    sums: Tensor
    """[K, D]: of those vectors, averaged likewise."""

    def __init__(self, num_codes: int, size: int, *, decay: float, dead_below: float, revive: bool) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(num_codes, size))
        self.register_buffer("counts", torch.zeros(num_codes))
        self.register_buffer("sums", torch.zeros(num_codes, size))
        self._decay = decay
        self._dead_below = dead_below
        self._revive = revive

    def forward(self, indices: Tensor) -> Tensor:
        """Return the vectors [m, D] of indices [m]."""
        return embedding(indices, self.vectors)

    @torch.no_grad()
    def nearest(self, x: Tensor) -> Tensor:
        """Return the index of the code nearest to each vector: int64 [m] of [m, D]."""
        # Squared distances less |x|^2, which is the same for all codes.
        distances = torch.addmm(self.vectors.square().sum(1), x, self.vectors.T, alpha=-2)
        return distances.min(1).indices  # argmin takes three times as long on a CPU

    @torch.no_grad()
    def restart(self, x: Tensor, batch: Batch, noise: Noise) -> None:
        """Move dead codes to vectors drawn from the global batch.

        Before the batch is looked up, so that a moved code can prove itself at once (random restart: Dhariwal et al.
        2020, arXiv:2005.00341, sec. 3.1).

        Args:
            x: [m, D], this worker's, the same number for each of its images.
            batch: the images that they are of.
            noise: says which vectors are drawn.
        """
        num_codes, per_image = len(self.counts), len(x) // len(batch.images)
        total = per_image * (batch.size or len(batch.images))
        least = self._dead_below * total / num_codes
        stays = self.counts >= least if self._revive else self.counts > 0
        drawn = _draw(x, num_codes, total, per_image * (batch.rows.start if batch.rows else 0), batch, noise)
        self.vectors.copy_(torch.where(stays[:, None], self.vectors, drawn))
        self.sums.copy_(torch.where(stays[:, None], self.sums, least * drawn))
        self.counts.copy_(torch.where(stays, self.counts, least))

    @torch.no_grad()
    def follow(self, x: Tensor, indices: Tensor, batch: Batch) -> None:
        """Move each code towards the mean of the vectors x [m, D] of the global batch that chose it; indices [m]."""
        rows = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        # Sums by code, as the gradient of a lookup: unlike index_add, a GPU sums it in the same order every time.
        found = batch.sum(torch.ops.aten.embedding_dense_backward(rows, indices, len(self.counts), -1, False))
        self.sums.mul_(self._decay).add_(found[:, :-1], alpha=1 - self._decay)
        self.counts.mul_(self._decay).add_(found[:, -1], alpha=1 - self._decay).clamp_min_(LEAST_COUNT)
        used = (self.counts > LEAST_COUNT)[:, None]
        self.vectors.copy_(torch.where(used, self.sums / self.counts[:, None], self.vectors))

    def usage(self) -> Tensor:
        """Return the share of codes that recent batches used, a scalar.

        Twice as much as makes a code dead: one that was just moved begins at the edge, and has yet to be used.
        """
        return (self.counts >= 2 * self._dead_below * self.counts.mean()).float().mean()

    def perplexity(self) -> Tensor:
        """Return how many codes, used alike, would say as much as these over recent batches: a scalar in [1, K]."""
        return torch.exp(torch.special.entr(self.counts / self.counts.sum()).sum())


def _draw(x: Tensor, num: int, total: int, start: int, batch: Batch, noise: Noise) -> Tensor:
    """Return ``num`` of the ``total`` vectors of the global batch, of which x [m, D] begins at ``start``."""
    chosen = (noise.uniform_for_all("codebook/restart", num) * total).long().clamp_max(total - 1) - start
    own = (chosen >= 0) & (chosen < len(x))
    return batch.sum(torch.where(own[:, None], x[chosen.clamp(0, len(x) - 1)], 0.0))
