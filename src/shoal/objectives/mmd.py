"""The maximum mean discrepancy: how far apart two distributions lie, told from samples of both."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""A kernel tells most at distances of its own scale, so several are summed, as Tolstikhin et al. did."""

Kernel = Callable[[Tensor, float], Tensor]
"""From squared distances and the squared distance that is usual to similarities, elementwise."""


def inverse_multiquadratic(squares: Tensor, usual: float) -> Tensor:
    """Return the sum over the scales of C / (C + squares), C = scale * usual.

    Its tails are heavy, so codes far from the prior feel a pull (Tolstikhin et al. 2018, arXiv:1711.01558, sec. 4).
    """
    return sum((scale * usual / (scale * usual + squares) for scale in SCALES), torch.zeros_like(squares))


def gaussian(squares: Tensor, usual: float) -> Tensor:
    """Return the sum over the scales of exp(-squares / C), C = scale * usual."""
    return sum((torch.exp(-squares / (scale * usual)) for scale in SCALES), torch.zeros_like(squares))


KERNELS: Mapping[str, Kernel] = {"imq": inverse_multiquadratic, "rbf": gaussian}


def unbiased_mmd(x: Tensor, y: Tensor, kernel: Kernel, usual: float) -> Tensor:
    """Return the unbiased estimate of the squared discrepancy of two samples [n, d] and [m, d] (n, m > 1), a scalar.

    Below 0 about half the time where both come from one distribution (Gretton et al. 2012, JMLR 13, eq. 3).
    """
    own = sum(_mean_of_pairs(kernel(_squared_distances(z, z), usual)) for z in (x, y))
    return own - 2 * kernel(_squared_distances(x, y), usual).mean()


def _mean_of_pairs(similarity: Tensor) -> Tensor:
    """Return the mean over pairs of different rows, of [n, n]."""
    num = len(similarity)
    return (similarity.sum() - similarity.diagonal().sum()) / (num * (num - 1))


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return (x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * x @ y.T).clamp_min(0)
