"""What a linear model reaches: the yardstick beside which the autoencoders stand."""

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor

from shoal.data import DataSet


def linear_yardstick(train: Tensor, test: Tensor, components: int) -> dict[str, float]:
    """Fit probabilistic PCA and measure it.

    The maximum-likelihood solution in closed form (Tipping & Bishop 1999, eq. 7 and 8): the leading eigenvectors of the
    covariance, and as noise the mean of the eigenvalues left out.

    Args:
        train: pixels in [0, 1], float64 [n, d].
        test: the same, [m, d].
        components: of the latent.

    Returns:
        ``mse`` of the projections of ``test``, mean over pixels, and ``nll``, the mean negative log-likelihood of its
        images in nats, a density over pixels in [0, 1].
    """
    mean = train.mean(0)
    variances, directions = torch.linalg.eigh(torch.cov(train.T))
    variances, directions = variances.flip(0), directions.flip(1)
    noise = variances[components:].mean()
    centred = test - mean
    codes = centred @ directions[:, :components]
    left = (centred.square().sum(1) - codes.square().sum(1)).clamp(min=0)
    log_determinant = variances[:components].log().sum() + (train.shape[1] - components) * noise.log()
    squared = (codes.square() / variances[:components]).sum(1) + left / noise
    nll = 0.5 * (squared + log_determinant + train.shape[1] * math.log(2 * math.pi))
    return {"mse": (left.mean() / train.shape[1]).item(), "nll": nll.mean().item()}


def pixels(data: DataSet, split: str) -> Tensor:
    """Return a whole split as float64 [n, C * H * W] in [0, 1]."""
    return torch.from_numpy(data.rows(split, 0, data.num_rows(split))).flatten(1).double() / 255


def main() -> None:
    """Print the yardstick as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--components", type=int, nargs="+", default=[16, 32, 64])
    asked = parser.parse_args()
    data = DataSet.open(asked.data)
    train, test = pixels(data, "train"), pixels(data, "test")
    print(json.dumps({f"PCA-{k}": linear_yardstick(train, test, k) for k in asked.components}, indent=1))


if __name__ == "__main__":
    main()
