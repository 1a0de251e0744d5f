"""Linear algebra of latents, in float64."""

import torch
from torch import Tensor

RIDGE = 0.1
"""Of a standard deviation: what of a direction others leave over is not blown up if it is much less than this."""


def nearest_to_axes(basis: Tensor) -> Tensor:
    """Return an orthonormal basis [k, L] of the same space, the nearest to k of the L axes, in the axes' order.

    It depends on the space alone, not on which of its bases came in.

    Args:
        basis: [L, k], orthonormal columns.
    """
    left, axes = basis.clone(), []
    for _ in range(basis.shape[1]):  # Gram-Schmidt with pivots: the axes chosen are independent in the space
        axis = int(left.square().sum(1).argmax())
        axes.append(axis)
        direction = left[axis] / left[axis].norm()
        left -= (left @ direction)[:, None] * direction
    # Orthogonal Procrustes (Schönemann 1966, doi:10.1007/BF02289451).
    U, _, Vh = torch.linalg.svd(basis[sorted(axes)].T)
    turned: Tensor = basis @ U @ Vh
    return turned.T


def whitened(directions: Tensor, taken: Tensor, inputs: Tensor) -> Tensor:
    """Return directions [m, d] along which inputs have variance 1, uncorrelated with each other and along ``taken``.

    So far as they can: where the inputs leave little variance beside what was taken, it stays little.

    Args:
        directions: [m, d], to begin with.
        taken: [L, d].
        inputs: [n, d].
    """
    both = torch.cat([taken, directions])
    values = (inputs - inputs.mean(0)) @ both.T / len(inputs) ** 0.5
    std = values.norm(dim=0).clamp_min(torch.finfo(values.dtype).tiny)
    eye = torch.eye(len(both), dtype=values.dtype)
    R = torch.linalg.qr(torch.cat([values / std, RIDGE * eye])).R
    combined = torch.linalg.solve_triangular(R, eye, upper=True)[:, len(taken) :]
    found: Tensor = combined.T @ (both / std[:, None])
    return found
