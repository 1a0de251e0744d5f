"""Likelihoods: how probable an image is, given what a decoder says of it. Pixels are in [0, 1], densities in nats."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from shoal.nets.family import Network

START_SIGMA = 0.3
"""About the standard deviation of a pixel before anything is learned of it."""

PACE = 10.0
"""How much faster log sigma moves than a weight. Adam moves both by the learning rate at a step, and from the start to
where it belongs are a thousand steps of 1e-3, during which the codes would be told to care too little."""

LEAST_LOG_SIGMA = math.log(1 / 255 / math.sqrt(12))
"""The rounding of 8-bit pixels. A density that is sharper than the pixels themselves grows without end and means
nothing."""


def bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """Return the log-likelihood [n] of images [n, C, H, W] in [0, 1] under logits of the same shape.

    For grey pixels it is the usual cross-entropy, which no distribution over [0, 1] has for its density.
    """
    return -binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)


def gaussian_log_prob(x: Tensor, mean: Tensor, log_sigma: Tensor) -> Tensor:
    """Return log N(x; mean, sigma^2 I) [n] of images [n, C, H, W] in [0, 1]; ``log_sigma`` is a scalar."""
    squares = (x - mean).square().flatten(1).sum(1)
    return -0.5 * squares * torch.exp(-2 * log_sigma) - x[0].numel() * (log_sigma + 0.5 * math.log(2 * math.pi))


class GaussianDecoder(nn.Module):
    """A decoder and one standard deviation for all pixels, learned with it unless it is given.

    Calibrated so, it balances reconstruction and KL by itself (Rybkin et al. 2021, arXiv:2006.13202, sec. 4.1). It
    belongs to a network, since only what goes through a network's forward is averaged over the workers.

    Args:
        net: from latents to images before the squashing.
        sigma: in [0, 1] pixels; None: learned.
    """

    def __init__(self, net: Network, sigma: float | None) -> None:
        super().__init__()
        self.net = net
        self.latent_axes = {f"net.{tensor}": axis for tensor, axis in net.latent_axes.items()}
        self._learned = sigma is None
        if sigma is None:
            self.log_sigma: Tensor = nn.Parameter(torch.tensor(math.log(START_SIGMA) / PACE))
        else:
            # Not of the state: it is the configuration's.
            self.register_buffer("log_sigma", torch.tensor(math.log(sigma)), persistent=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return images [n, C, H, W] before the squashing, of latents [n, latent], and the scalar log sigma."""
        if not self._learned:
            return self.net(z), self.log_sigma
        return self.net(z), LEAST_LOG_SIGMA + softplus(PACE * self.log_sigma - LEAST_LOG_SIGMA)
