"""Which map of the latent changes its size, for each kind of latent.

A map takes codes z [L] to codes z' [k] = project z, and back to lift z' + offset, which is what the layers that read
the latent are to see in place of z. Everything is float64.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from shoal.objectives import LatentKind
from shoal.objectives.vae import kl_to_standard_normal
from shoal.transplant.donor import Donor
from shoal.transplant.layout import SPECTRAL
from shoal.transplant.subspace import nearest_to_axes

RIDGE = 1e-7
"""Of standard deviations and column norms, so that a dimension that is not used, or not read, still has an order."""


@dataclass(frozen=True, kw_only=True)
class LatentMap:
    """An affine map between latents of sizes L and k.

    Attributes:
        project: [k, L].
        lift: [L, k].
        offset: [L], of the lift; project @ offset is 0.
    """

    project: Tensor
    lift: Tensor
    offset: Tensor

    def scaled(self, factor: float) -> "LatentMap":
        """Return the same map to codes that are ``factor`` times as large."""
        return LatentMap(project=factor * self.project, lift=self.lift / factor, offset=self.offset)


def padding(before: int, after: int) -> LatentMap:
    """Return the map that appends zeros to a code."""
    project = torch.eye(after, before, dtype=torch.float64)
    return LatentMap(project=project, lift=project.T, offset=torch.zeros(before, dtype=torch.float64))


def keep(use: Tensor, mean: Tensor, size: int) -> LatentMap:
    """Return the map that keeps the ``size`` dimensions of largest ``use`` [L], in their order.

    The others are replaced by their ``mean`` [L].
    """
    kept = use.sort(descending=True, stable=True).indices[:size].sort().values
    project = torch.eye(len(use), dtype=torch.float64)[kept]
    return LatentMap(project=project, lift=project.T, offset=mean.index_fill(0, kept, 0.0))


def keep_most_used(donor: Donor, size: int) -> LatentMap:
    """Keep the dimensions that move what is read the most: variance of the code x squared norm of what reads it.

    Codes that cannot be asked for are taken to be N(0, I).
    """
    norms = donor.columns().square().sum(0)
    codes = donor.codes()
    if codes is None:
        return keep(norms, torch.zeros_like(norms), size)
    return keep(codes.var(0, correction=0) * norms, codes.mean(0), size)


def keep_most_informative(donor: Donor, size: int) -> LatentMap:
    """Keep the dimensions of a posterior that say most of an image: of the largest mean KL(q(z | x) || N(0, 1))."""
    posterior = donor.posterior()
    if posterior is None:
        return keep_most_used(donor, size)
    mean, log_variance = posterior
    kl = kl_to_standard_normal(mean.reshape(-1, 1), log_variance.reshape(-1, 1)).view_as(mean)
    return keep(kl.mean(0), mean.mean(0), size)


def turn(donor: Donor, size: int, *, keep_distances: bool = False) -> LatentMap:
    """Project codes z so that E |W (z - z')|^2 is the least that rank ``size`` allows; W is all that reads them.

    With C = R^T R the covariance of the codes, W (z - z') is nearest to 0 if z' keeps the row space of S^T W, S the
    first left singular vectors of W R^T (Eckart & Young 1936, doi:10.1007/BF02288367); the rest of z is predicted from
    z' by least squares. Codes that cannot be asked for are taken to be N(0, I), for which these are W's right singular
    vectors.

    Of all bases of that space it takes an orthonormal one, so codes that are N(0, I) stay so, and of these the nearest
    to a choice of the old axes, so that as little as possible changes its meaning.

    Args:
        donor: the trained model.
        size: of the new latent.
        keep_distances: whether distances between codes weigh as much as what is read of them.
    """
    W = donor.columns()
    latent = W.shape[1]
    eye = torch.eye(latent, dtype=torch.float64)
    W = W / W.norm().clamp_min(torch.finfo(W.dtype).tiny) * latent**0.5
    W = torch.cat([W, eye if keep_distances else RIDGE * eye])
    W = torch.linalg.qr(W).R
    codes = donor.written()
    mean = torch.zeros(latent, dtype=torch.float64) if codes is None else codes.mean(0)
    R = eye
    if codes is not None:
        centred = (codes - mean) / len(codes) ** 0.5
        usual = centred.norm().clamp_min(torch.finfo(W.dtype).tiny) / latent**0.5
        R = torch.linalg.qr(torch.cat([centred, RIDGE * usual * eye])).R
    S = torch.linalg.svd(W @ R.T).U[:, :size]
    P = nearest_to_axes(torch.linalg.qr(W.T @ S).Q)
    lift = _prediction(P, R)
    if keep_distances:  # what is predicted lies in a subspace: across to it, not along what does not count
        P = nearest_to_axes(torch.linalg.qr(lift).Q)
        lift = _prediction(P, R)
    found = LatentMap(project=P, lift=lift, offset=mean - lift @ (P @ mean))
    return found.scaled(_stretch(P, donor))


def _prediction(P: Tensor, R: Tensor) -> Tensor:
    """Return [L, k], the best linear prediction of codes of covariance R^T R and mean 0 from P times them."""
    solution: Tensor = torch.linalg.lstsq(R @ P.T, R).solution
    return solution.T


def _stretch(project: Tensor, donor: Donor) -> float:
    """Return how much larger the spectral norm makes codes that are written by a part of the weight; 1 without it."""
    normed = [site for site in donor.layout.weights("writes") if SPECTRAL in site.name and site.parts == 1]
    if len(normed) != 1:
        return 1.0
    (site,) = normed
    left = project @ donor.tensor(site.name).movedim(site.axis, 0).flatten(1)
    return donor.sigma(site) / float(torch.linalg.matrix_norm(left, 2))


SHRINK: Mapping[LatentKind, Callable[[Donor, int], LatentMap]] = {
    "code": keep_most_used,
    "linear": turn,
    "prior": turn,
    "posterior": keep_most_informative,
    "codebook": partial(turn, keep_distances=True),
}
