import math
from typing import Literal, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal.objectives.adversarial import LOSSES, LossName

LN2 = math.log(2)
scores = st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=8)


def test_every_name_has_its_loss() -> None:
    assert set(LOSSES) == set(get_args(LossName))


# By hand, at the raw scores C(x) = 0 and C(G(z)) = 0, then at 2 and -3, and where the discriminator is wrong, -2 and 3.
# softplus(-2) = 0.126928, softplus(-3) = 0.048587, softplus(-5) = 0.006715, softplus(5) = 5.006715.
BY_HAND: list[tuple[LossName, tuple[float, float], float, float]] = [
    ("non_saturating", (0, 0), 2 * LN2, LN2),
    ("non_saturating", (2, -3), 0.126928 + 0.048587, 3.048587),
    ("non_saturating", (-2, 3), 2.126928 + 3.048587, 0.048587),
    ("minimax", (0, 0), 2 * LN2, -LN2),
    ("minimax", (2, -3), 0.126928 + 0.048587, -0.048587),
    ("minimax", (-2, 3), 2.126928 + 3.048587, -3.048587),
    ("hinge", (0, 0), 2, 0),
    ("hinge", (2, -3), 0, 3),
    ("hinge", (0.25, -0.5), 0.75 + 0.5, 0.5),
    ("hinge", (-2, 3), 3 + 4, -3),
    ("wasserstein", (0, 0), 0, 0),
    ("wasserstein", (2, -3), -5, 3),
    ("wasserstein", (-2, 3), 5, -3),
    ("relativistic", (0, 0), LN2, LN2),
    ("relativistic", (2, -3), 0.006715, 5.006715),
    ("relativistic", (-2, 3), 5.006715, 0.006715),
]


@pytest.mark.parametrize(("name", "at", "discriminator", "generator"), BY_HAND)
def test_losses_by_hand(name: LossName, at: tuple[float, float], discriminator: float, generator: float) -> None:
    real, fake = torch.tensor([at], dtype=torch.float64).unbind(1)
    assert LOSSES[name].discriminator(real, fake).item() == pytest.approx(discriminator, abs=2e-6)
    assert LOSSES[name].generator(real, fake).item() == pytest.approx(generator, abs=2e-6)


def probability(score: float) -> float:
    return 1 / (1 + math.exp(-score))


def slow(name: LossName, real: float, fake: float) -> tuple[float, float]:
    """Return both losses as the papers write them, with logarithms of probabilities."""
    if name == "hinge":
        return -min(0.0, -1 + real) - min(0.0, -1 - fake), -fake
    if name == "wasserstein":
        return -(real - fake), -fake
    if name == "relativistic":
        return -math.log(probability(real - fake)), -math.log(probability(fake - real))
    cross_entropy = -math.log(probability(real)) - math.log(1 - probability(fake))
    if name == "minimax":
        return cross_entropy, math.log(1 - probability(fake))
    return cross_entropy, -math.log(probability(fake))


@pytest.mark.parametrize("name", LOSSES)
@given(pairs=scores)
def test_losses_are_the_papers_formulas_image_by_image(name: LossName, pairs: list[tuple[float, float]]) -> None:
    real, fake = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    expected = torch.tensor([slow(name, *pair) for pair in pairs], dtype=torch.float64)
    torch.testing.assert_close(LOSSES[name].discriminator(real, fake), expected[:, 0], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(LOSSES[name].generator(real, fake), expected[:, 1], rtol=1e-6, atol=1e-8)


def slopes(name: LossName, real: Tensor, fake: Tensor, player: Literal["discriminator", "generator"]) -> list[Tensor]:
    """Return how the loss changes with the raw scores of real and of generated images."""
    at = [real.clone().requires_grad_(), fake.clone().requires_grad_()]
    loss = getattr(LOSSES[name], player)(*at).sum()
    return list(torch.autograd.grad(loss, at, allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("name", LOSSES)
@given(pairs=scores)
def test_the_players_pull_in_opposite_directions(name: LossName, pairs: list[tuple[float, float]]) -> None:
    real, fake = torch.tensor(pairs).unbind(1)
    by_real, by_fake = slopes(name, real, fake, "discriminator")
    assert (by_real <= 0).all()
    assert (by_fake >= 0).all()
    by_real, by_fake = slopes(name, real, fake, "generator")
    assert (by_fake <= 0).all()
    assert (by_real >= 0).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sure", [-1e4, 1e4])
def test_losses_and_their_slopes_stay_finite_where_the_discriminator_is_sure(name: LossName, sure: float) -> None:
    real, fake = torch.tensor([sure]), torch.tensor([-sure])
    assert LOSSES[name].discriminator(real, fake).isfinite().all()
    assert LOSSES[name].generator(real, fake).isfinite().all()
    for found in (slopes(name, real, fake, "discriminator"), slopes(name, real, fake, "generator")):
        assert all(slope.isfinite().all() for slope in found)


@given(pairs=scores, shift=st.floats(-5, 5))
def test_only_the_difference_counts_for_the_relativistic_loss(pairs: list[tuple[float, float]], shift: float) -> None:
    real, fake = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    loss = LOSSES["relativistic"]
    for player in (loss.discriminator, loss.generator):
        torch.testing.assert_close(player(real + shift, fake + shift), player(real, fake))
    torch.testing.assert_close(loss.generator(real, fake), loss.discriminator(fake, real))


@pytest.mark.parametrize("name", LOSSES)
def test_a_generator_reads_the_real_scores_only_where_the_loss_is_paired(name: LossName) -> None:
    fake = torch.randn(5)
    one, other = (LOSSES[name].generator(real, fake) for real in (torch.zeros(5), torch.ones(5)))
    assert torch.equal(one, other) != LOSSES[name].paired
