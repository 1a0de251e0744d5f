"""Which generated images look real, and which real ones are reached: neighbourhoods in a feature space."""

from typing import NamedTuple

import torch
from torch import Tensor

from shoal.quality.distance import BLOCK

PRECISION_NEIGHBOURS = 3
COVERAGE_NEIGHBOURS = 5
MIN_IMAGES = COVERAGE_NEIGHBOURS + 1
"""Fewer have no fifth neighbour."""


class Neighbourhoods(NamedTuple):
    """One value per image, float64; the measure is the mean.

    Attributes:
        precision: [generated] 1 where it lies in the neighbourhood of a real image.
        recall: [real] 1 where it lies in the neighbourhood of a generated image.
        density: [generated] in how many real neighbourhoods it lies, over their neighbours' number.
        coverage: [real] 1 where a generated image lies in its neighbourhood.
    """

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor


def neighbourhoods(real: Tensor, generated: Tensor) -> Neighbourhoods:
    """Compare two sets of features, float64 [m, d] and [n, d], both of ``MIN_IMAGES`` at least.

    A neighbourhood is the ball around an image that reaches its k-th nearest neighbour among its own kind. Precision
    and recall with k = 3: Kynkaanniemi et al. 2019 (arXiv:1904.06991, eq. 1 and 2). Density and coverage with k = 5:
    Naeem et al. 2020 (arXiv:2002.09797, eq. 5 and 6). Memory: ``BLOCK`` rows of distances.
    """
    centre = real.mean(0)  # squared distances come out of differences: the smaller the numbers, the more exact
    real, generated = real - centre, generated - centre
    near_real = _nearest(real, COVERAGE_NEIGHBOURS)
    near_generated = _nearest(generated, PRECISION_NEIGHBOURS)[:, -1]
    small, large = near_real[:, PRECISION_NEIGHBOURS - 1, None], near_real[:, -1, None]
    precise, recalled = torch.zeros_like(generated[:, 0]), torch.zeros_like(real[:, 0])
    density, covered = torch.zeros_like(generated[:, 0]), torch.zeros_like(real[:, 0])
    for start in range(0, len(real), BLOCK):
        rows = slice(start, start + BLOCK)
        distances = _squared_distances(real[rows], generated)
        inside = distances <= large[rows]
        density += inside.sum(0)
        covered[rows] = inside.any(1).double()
        precise = torch.maximum(precise, (distances <= small[rows]).any(0).double())
        recalled[rows] = (distances <= near_generated).any(1).double()
    return Neighbourhoods(precise, recalled, density / COVERAGE_NEIGHBOURS, covered)


def _nearest(x: Tensor, neighbours: int) -> Tensor:
    """Return the squared distances from each row to its nearest others, ascending, [n, neighbours]."""
    found = []
    for start in range(0, len(x), BLOCK):
        distances = _squared_distances(x[start : start + BLOCK], x)
        own = torch.arange(len(distances), device=x.device)
        distances[own, own + start] = torch.inf
        found.append(distances.topk(neighbours, largest=False).values)
    return torch.cat(found)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return |x - y|^2 for all pairs of rows, [m, n]."""
    return torch.addmm(x.square().sum(1)[:, None] + y.square().sum(1), x, y.T, alpha=-2).clamp_(min=0)
