"""What a discriminator and a generator minimise, as functions of raw scores.

The raw score C(x) of an image is the discriminator's output before any squashing, [n]. Where a loss reads it as the
logit of a probability, D(x) = sigmoid(C(x)), so that -log D = softplus(-C) and -log(1 - D) = softplus(C).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import relu, softplus

LossName = Literal["non_saturating", "minimax", "hinge", "wasserstein", "relativistic"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""From raw scores of real and of generated images, both [n], to one value per image, [n]."""


@dataclass(frozen=True, kw_only=True)
class AdversarialLoss:
    """What the two players minimise.

    Attributes:
        discriminator: from raw scores of real and generated images, both [n], to [n].
        generator: the same; it reads the real ones only if ``paired``.
        paired: whether the generator is judged beside real images.
        probability: whether the sigmoid of a raw score is the probability of being real.
    """

    discriminator: Loss
    generator: Loss
    paired: bool = False
    probability: bool = False


def cross_entropy(real: Tensor, fake: Tensor) -> Tensor:
    """Return -log D(x) - log(1 - D(G(z))), Goodfellow et al. 2014 (arXiv:1406.2661), eq. 1, negated."""
    return softplus(-real) + softplus(fake)


def saturating_generator(real: Tensor, fake: Tensor) -> Tensor:
    """Return log(1 - D(G(z))), Goodfellow et al. 2014, eq. 1; its gradient vanishes where D is sure."""
    return -softplus(fake)


def non_saturating_generator(real: Tensor, fake: Tensor) -> Tensor:
    """Return -log D(G(z)), the cure for the vanishing gradient in Goodfellow et al. 2014, section 3."""
    return softplus(-fake)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Return max(0, 1 - C(x)) + max(0, 1 + C(G(z))), Lim & Ye 2017 (arXiv:1705.02894).

    It is eq. 16 of Miyato et al. 2018 (arXiv:1802.05957), negated.
    """
    return relu(1 - real) + relu(1 + fake)


def wasserstein(real: Tensor, fake: Tensor) -> Tensor:
    """Return C(G(z)) - C(x), Arjovsky et al. 2017 (arXiv:1701.07875), eq. 2, negated.

    Its mean estimates minus the distance of the two distributions while C is kept 1-Lipschitz by other means.
    """
    return fake - real


def linear_generator(real: Tensor, fake: Tensor) -> Tensor:
    """Return -C(G(z)), Arjovsky et al. 2017, theorem 3, and Miyato et al. 2018, eq. 17."""
    return -fake


def relativistic(real: Tensor, fake: Tensor) -> Tensor:
    """Return -log sigmoid(C(x) - C(G(z))) for each pair of a real and a generated image.

    The relativistic pairing GAN: RSGAN of Jolicoeur-Martineau 2018 (arXiv:1807.00734), in the form of Huang et al. 2025
    (arXiv:2501.05441), eq. 2 with f(t) = -log(1 + exp(-t)).
    """
    return softplus(fake - real)


def relativistic_generator(real: Tensor, fake: Tensor) -> Tensor:
    """Return -log sigmoid(C(G(z)) - C(x)) for each pair, the non-saturating turn of Jolicoeur-Martineau 2018."""
    return softplus(real - fake)


LOSSES: Mapping[LossName, AdversarialLoss] = {
    "non_saturating": AdversarialLoss(
        discriminator=cross_entropy, generator=non_saturating_generator, probability=True
    ),
    "minimax": AdversarialLoss(discriminator=cross_entropy, generator=saturating_generator, probability=True),
    "hinge": AdversarialLoss(discriminator=hinge, generator=linear_generator),
    "wasserstein": AdversarialLoss(discriminator=wasserstein, generator=linear_generator),
    "relativistic": AdversarialLoss(discriminator=relativistic, generator=relativistic_generator, paired=True),
}
