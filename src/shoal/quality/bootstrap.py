"""How far a measure would move with other images: 95 % intervals by the bootstrap (Efron 1979), the same every time."""

from typing import NamedTuple

import torch
from torch import Tensor

from shoal.quality.distance import (
    Moments,
    frechet_distance,
    inception_scores,
    kernel_distances,
)

CONFIDENCE = 0.95
STANDARD_DEVIATIONS = 1.959964
"""Of a normal distribution, on either side of its mean, that hold ``CONFIDENCE`` of it."""
REPLICATES = 1_000
FEW_REPLICATES = 50
"""Where each one costs eigenvalues or kernels: enough for a standard deviation (to 10 %), too few for its tails."""
WIDE = 512
"""Features from which on a replicate of a Frechet distance costs seconds: there are ``FEWEST_REPLICATES`` then."""
FEWEST_REPLICATES = 12
DRAWS_IN_MEMORY = 4_000_000


class Interval(NamedTuple):
    """Where a measure lies in 95 of 100 repetitions with other images."""

    low: float
    high: float


def resample(num: int, replicates: int, generator: torch.Generator) -> Tensor:
    """Return how often each of ``num`` images is drawn in each replicate, float64 [num, replicates], on the CPU."""
    drawn = torch.randint(num, (replicates, num), generator=generator)
    drawn += num * torch.arange(replicates)[:, None]
    return torch.bincount(drawn.flatten(), minlength=replicates * num).view(replicates, num).T.double()


def mean_intervals(values: Tensor) -> list[Interval]:
    """Return the interval of each column's mean, of values float64 [n, measures]: percentiles of the replicates."""
    generator, values = torch.Generator().manual_seed(0), values.cpu()
    chunk = max(1, min(REPLICATES, DRAWS_IN_MEMORY // len(values)))
    means = torch.cat(
        [
            resample(len(values), min(chunk, REPLICATES - start), generator).T @ values / len(values)
            for start in range(0, REPLICATES, chunk)
        ]
    )
    tail = (1 - CONFIDENCE) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0).tolist()
    return [Interval(*pair) for pair in zip(low, high, strict=True)]


def frechet_interval(x: Tensor, y: Tensor, estimate: float) -> Interval:
    """Return the interval of a Frechet distance of features, float64 [m, d] and [n, d]; both sets are drawn anew.

    A replicate's moments are noisier than the estimate's, which the distance takes for distance: replicates lie above
    the estimate. So only their spread is used, and the interval is centred on the estimate.
    """
    generator = torch.Generator().manual_seed(0)
    replicates = []
    for _ in range(FEW_REPLICATES if x.shape[1] < WIDE else FEWEST_REPLICATES):
        one, other = (Moments.of(f, resample(len(f), 1, generator)[:, 0].to(f.device)) for f in (x, y))
        replicates.append(frechet_distance(one, other))
    return around(estimate, torch.tensor(replicates, dtype=torch.float64))


def kernel_interval(x: Tensor, y: Tensor) -> tuple[float, Interval]:
    """Return the kernel distance of features, float64 [m, d] and [n, d], and its interval; both sets are drawn anew.

    Replicates weigh the pairs of the one U-statistic, in the same pass over the kernels. Where both sets are of one
    distribution the statistic is degenerate, and the interval up to 1.7 times too wide.
    """
    generator = torch.Generator().manual_seed(0)
    x_weights, y_weights = (resample(len(f), FEW_REPLICATES, generator).to(f.device) for f in (x, y))
    # The first column is the estimate itself: every image once.
    x_weights, y_weights = (torch.cat([torch.ones_like(w[:, :1]), w], dim=1) for w in (x_weights, y_weights))
    estimate, *replicates = kernel_distances(x, y, x_weights, y_weights).tolist()
    return estimate, around(estimate, torch.tensor(replicates, dtype=torch.float64))


def inception_interval(probabilities: Tensor) -> tuple[float, Interval]:
    """Return the Inception Score of class probabilities, float64 [n, classes], and its interval."""
    generator = torch.Generator().manual_seed(0)
    weights = resample(len(probabilities), FEW_REPLICATES * 4, generator).to(probabilities.device)
    weights = torch.cat([torch.ones_like(weights[:, :1]), weights], dim=1)
    estimate, *replicates = inception_scores(probabilities, weights).tolist()
    return estimate, around(estimate, torch.tensor(replicates, dtype=torch.float64))


def around(estimate: float, replicates: Tensor) -> Interval:
    """Return the normal interval with the replicates' standard deviation, centred on the estimate."""
    half = STANDARD_DEVIATIONS * replicates.std().item()
    return Interval(estimate - half, estimate + half)
