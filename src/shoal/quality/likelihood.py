"""How probable a model finds images: the evidence lower bound, and nearer to the truth by importance sampling. Nats."""

from math import log

import torch
from torch import Tensor

from shoal.model import Model
from shoal.objectives import HasLikelihood
from shoal.pixels import to_float
from shoal.quality.images import Block, Sample, Workshare, exact
from shoal.quality.measure import Measure
from shoal.render import inference

ACTIVE_VARIANCE = 0.01
DRAWS_AT_ONCE = 10
"""Of each image in a small block, so that workers have blocks to share out."""


def lower_bounds(model: Model, sample: Sample, share: Workshare) -> tuple[dict[str, Tensor], Tensor]:
    """Return ``quality/elbo`` and ``quality/kl`` of every image, float64 [n], and its posterior mean, [n, latent].

    The bound is a single-sample estimate of E_q[log p(x | z) + log p(z) - log q(z | x)], Kingma & Welling 2014
    (arXiv:1312.6114, eq. 2); the divergence KL(q(z | x) || N(0, I)) is exact (their appendix B).
    """
    objective = model.objective
    assert isinstance(objective, HasLikelihood)

    def work(block: Block) -> dict[str, Tensor]:
        x = to_float(sample.pixels(block, model.device), model.config.data.range)
        with inference(objective.nets):
            mean, log_variance = posterior = objective.posterior(x)
            eps = block.noise(model.device).normal("posterior", mean.shape[1])
            bound = objective.log_weights(x, posterior, eps)
        mean, log_variance = exact(mean), exact(log_variance)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return {"quality/elbo": bound, "quality/kl": divergence, "mean": mean}

    tables = share.tables("bounding the likelihood", len(sample), work)
    return tables, tables.pop("mean")


def negative_log_likelihoods(model: Model, sample: Sample, share: Workshare, importance_samples: int) -> Tensor:
    """Return -log p(x) of every image, float64 [n], estimated with so many draws from the posterior.

    It is the bound of Burda et al. 2016 (arXiv:1509.00519, eq. 8): never below the truth on average, and nearer to it
    with every draw.
    """
    objective = model.objective
    assert isinstance(objective, HasLikelihood)

    def work(block: Block) -> dict[str, Tensor]:
        x = to_float(sample.pixels(block, model.device), model.config.data.range)
        noise = block.noise(model.device)
        with inference(objective.nets):
            mean, log_variance = objective.posterior(x)
            found = []
            for first in range(0, importance_samples, DRAWS_AT_ONCE):
                draws = range(first, min(first + DRAWS_AT_ONCE, importance_samples))
                eps = torch.cat([noise.normal(f"importance/{draw}", mean.shape[1]) for draw in draws])
                posterior = mean.repeat(len(draws), 1), log_variance.repeat(len(draws), 1)
                weights = objective.log_weights(x.repeat(len(draws), 1, 1, 1), posterior, eps)
                found.append(exact(weights).view(len(draws), len(x)))
        return {"nll": log(importance_samples) - torch.cat(found).logsumexp(0)}

    what = f"{importance_samples} importance samples"
    return share.tables(what, len(sample), work, weight=DRAWS_AT_ONCE)["nll"]


def active_units(means: Tensor) -> Measure:
    """Count the latents whose posterior mean, float64 [n, latent], varies over images by more than 0.01.

    Burda et al. 2016 (arXiv:1509.00519, section 5.2). The others carry nothing of the image.
    """
    active = (means.var(0) > ACTIVE_VARIANCE).sum().item()
    return Measure(float(active), len(means), of=means.shape[1])
