"""How far apart two sets of images are, as formulas on their features. Float64; the more images, the truer.

Each formula takes weights of the images as well, so that a bootstrap replicate is one more column of weights.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

BLOCK = 1_000
"""Rows whose kernels or distances to all others are in memory at once."""


@dataclass(frozen=True)
class Moments:
    """Mean [d] and unbiased covariance [d, d] of features, float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor, counts: Tensor | None = None) -> Self:
        """Return the moments of ``features``, float64 [n, d] with n >= 2; ``counts`` [n] says how often each occurs."""
        counts = torch.ones_like(features[:, 0]) if counts is None else counts
        mean = counts @ features / counts.sum()
        centred = features - mean
        return cls(mean, (counts[:, None] * centred).T @ centred / (counts.sum() - 1))


def frechet_distance(one: Moments, other: Moments) -> float:
    """Return the squared Frechet distance of two Gaussians with these moments.

    Dowson & Landau 1982; in the features of Inception it is the FID of Heusel et al. 2017 (arXiv:1706.08500, eq. 6).
    With few images it is biased upwards, by an amount that depends on the model: compare only at the same n.
    """
    # tr (A B)^1/2 is the sum of the singular values of A^1/2 B^1/2. The eigenvalues of A^1/2 B A^1/2 are their squares,
    # and a root of a rounding error of 1e-16 is one of 1e-8 for each dead feature.
    overlap = torch.linalg.svdvals(_root(one.covariance) @ _root(other.covariance)).sum()
    spread = one.covariance.trace() + other.covariance.trace() - 2 * overlap
    return max(0.0, float((one.mean - other.mean).square().sum() + spread))


def _root(covariance: Tensor) -> Tensor:
    """Return the symmetric root of a positive semi-definite matrix [d, d]."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Return the squared maximum mean discrepancy of two sets of features, float64 [m, d] and [n, d], unbiased.

    The kernel is (x . y / d + 1)^3 and the estimate the whole U-statistic, over all pairs of different rows: in the
    features of Inception it is the KID of Binkowski et al. 2018 (arXiv:1801.01401). It may fall below 0.
    """
    ones = x.new_ones(1, 1)
    return kernel_distances(x, y, ones.expand(len(x), 1), ones.expand(len(y), 1)).item()


def kernel_parts(x: Tensor, y: Tensor) -> Tensor:
    """Return what each of the images y adds to the kernel distance of features, float64 [m, d] and [n, d]: [n].

    Their mean is the distance, and their standard error its own, for given images x: they are the first-order terms of
    the U-statistic (Hoeffding 1948). Of two models compared on the same x, the differences tell the error of theirs.
    """
    m, n = len(x), len(y)
    within, between, real = y.new_empty(n), y.new_empty(n), y.new_zeros(())
    for start in range(0, n, BLOCK):
        rows = slice(start, start + BLOCK)
        within[rows] = (_kernel(y[rows], y).sum(1) - _kernel_self(y[rows])) / (n - 1)
        between[rows] = _kernel(y[rows], x).mean(1)
    for start in range(0, m, BLOCK):
        rows = slice(start, start + BLOCK)
        real += (_kernel(x[rows], x).sum() - _kernel_self(x[rows]).sum()) / (m * (m - 1))
    return 2 * within - within.mean() - 2 * between + real


def _kernel_self(x: Tensor) -> Tensor:
    """Return the kernel of each row with itself, [n]."""
    return x.square().sum(1).div(x.shape[1]).add(1).pow(3)


def kernel_distances(x: Tensor, y: Tensor, x_weights: Tensor, y_weights: Tensor) -> Tensor:
    """Return the kernel distance under each of B weightings of the rows, [B].

    A pair of different rows counts with the product of its weights; a row is never paired with itself, however often
    it was drawn, or else the replicates would lie above the estimate.

    Args:
        x: features, float64 [m, d].
        y: features, float64 [n, d].
        x_weights: float64 [m, B].
        y_weights: float64 [n, B].
    """
    between = torch.zeros_like(x_weights[0])
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        between += (x_weights[rows] * (_kernel(x[rows], y) @ y_weights)).sum(0)
    between /= x_weights.sum(0) * y_weights.sum(0)
    return _kernel_within(x, x_weights) + _kernel_within(y, y_weights) - 2 * between


def _kernel_within(x: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of the kernel over pairs of different rows, [B]."""
    total = torch.zeros_like(weights[0])
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        block = _kernel(x[rows], x[rows]).fill_diagonal_(0)
        total += (weights[rows] * (block @ weights[rows])).sum(0)
        if start + BLOCK < len(x):  # the kernel is symmetric: the other half is the same again
            total += 2 * (weights[rows] * (_kernel(x[rows], x[start + BLOCK :]) @ weights[start + BLOCK :])).sum(0)
    return total / (weights.sum(0).square() - weights.square().sum(0))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """Return (x . y / d + 1)^3 for all pairs of rows, [m, n]."""
    product = (x @ y.T).div_(x.shape[1]).add_(1)
    return product.square().mul_(product)


def inception_score(probabilities: Tensor) -> float:
    """Return exp of the mean KL divergence of each image's classes from all images' classes.

    Salimans et al. 2016 (arXiv:1606.03498, section 4), on all images at once instead of on ten parts: from 1, all
    images alike, to the number of classes. It knows nothing of the real images.

    Args:
        probabilities: of each class, float64 [n, classes].
    """
    return inception_scores(probabilities, probabilities.new_ones(len(probabilities), 1)).item()


def inception_scores(probabilities: Tensor, weights: Tensor) -> Tensor:
    """Return the Inception Score under each of B weightings of the images, float64 [n, B]: [B]."""
    shares = weights / weights.sum(0)
    entropies = -torch.special.entr(probabilities).sum(1)
    divergences: Tensor = entropies @ shares + torch.special.entr(shares.T @ probabilities).sum(1)
    return divergences.exp()
