from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from shoal.objectives.penalties import due, image_gradient, one_centred_gradient, squared_gradient

SHAPE = (2, 3, 3)
NUM = 5
STEP = 1e-5
Penalty = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def smooth_discriminator(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(18, 7), nn.SiLU(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 1)
    ).double()


def images(seed: int) -> Tensor:
    return torch.randn(NUM, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def score(net: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = net(x)
    return out.squeeze(1)


def zero_centred(net: nn.Module, x: Tensor, y: Tensor, position: Tensor, on: str) -> Tensor:
    at = (x if on == "real" else y).clone().requires_grad_()
    return squared_gradient(score(net, at), at)


def one_centred(net: nn.Module, x: Tensor, y: Tensor, position: Tensor) -> Tensor:
    return one_centred_gradient(partial(score, net), x, y, position)


PENALTIES: dict[str, Penalty] = {
    "r1": partial(zero_centred, on="real"),
    "r2": partial(zero_centred, on="fake"),
    "gradient": one_centred,
}


def numeric_gradient(net: nn.Module, x: Tensor) -> Tensor:
    """Return the gradient of each image's score by its pixels, one pixel at a time."""
    found = torch.zeros(len(x), x[0].numel(), dtype=x.dtype)
    for pixel in range(x[0].numel()):
        change = torch.zeros(x[0].numel(), dtype=x.dtype)
        change[pixel] = STEP
        change = change.view(x[0].shape)
        with torch.no_grad():
            found[:, pixel] = (score(net, x + change) - score(net, x - change)) / (2 * STEP)
    return found


@pytest.fixture
def position() -> Tensor:
    return torch.tensor([[0.0], [0.25], [0.5], [0.9], [0.999]], dtype=torch.float64)


def test_the_image_gradient_is_the_slope_of_each_score_by_its_own_image() -> None:
    net, x = smooth_discriminator(), images(1).requires_grad_()
    torch.testing.assert_close(
        image_gradient(score(net, x), x), numeric_gradient(net, x.detach()), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_agree_with_finite_differences_image_by_image(name: str, position: Tensor) -> None:
    net, x, y = smooth_discriminator(), images(1), images(2)
    if name == "gradient":
        between = torch.stack([p * a + (1 - p) * b for p, a, b in zip(position[:, 0], x, y, strict=True)])
        expected = (numeric_gradient(net, between).square().sum(1).sqrt() - 1).square()
    else:
        expected = numeric_gradient(net, x if name == "r1" else y).square().sum(1)
    found = PENALTIES[name](net, x, y, position)
    assert found.shape == (NUM,)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", PENALTIES)
def test_gradients_by_the_weights_agree_with_finite_differences(name: str, position: Tensor) -> None:
    net, x, y = smooth_discriminator(), images(1), images(2)

    def value() -> Tensor:
        return PENALTIES[name](net, x, y, position).mean()

    weights = list(net.parameters())
    gradients = torch.autograd.grad(value(), weights, allow_unused=True, materialize_grads=True)
    reached = 0
    for weight, found in zip(weights, gradients, strict=True):
        numeric = torch.zeros_like(weight)
        for index in range(weight.numel()):
            kept = weight.data.view(-1)[index].item()
            ends = []
            for end in (kept + STEP, kept - STEP):
                weight.data.view(-1)[index] = end
                ends.append(value().item())
            weight.data.view(-1)[index] = kept
            numeric.view(-1)[index] = (ends[0] - ends[1]) / (2 * STEP)
        torch.testing.assert_close(found, numeric, rtol=1e-5, atol=1e-8)
        reached += int(found.abs().max() > 1e-4)
    assert reached == 5  # all but the last bias, which no slope depends on


def linear(*slope: float) -> nn.Module:
    layer = nn.Linear(len(slope), 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([slope]))
    return nn.Sequential(nn.Flatten(), layer)


def test_a_linear_score_by_hand() -> None:
    net = linear(3, -4)  # the gradient is (3, -4) everywhere, its length 5
    x, y = torch.rand(3, 1, 1, 2, requires_grad=True), torch.rand(3, 1, 1, 2)
    torch.testing.assert_close(squared_gradient(score(net, x), x), torch.full((3,), 25.0))
    torch.testing.assert_close(one_centred(net, x, y, torch.rand(3, 1)), torch.full((3,), 16.0))


def test_where_the_score_is_flat_the_penalties_still_have_gradients() -> None:
    net = linear(0, 0)
    x = torch.rand(3, 1, 1, 2, requires_grad=True)
    penalty = squared_gradient(score(net, x), x) + one_centred(net, x, x, torch.rand(3, 1))
    torch.testing.assert_close(penalty, torch.ones(3))
    (gradient,) = torch.autograd.grad(penalty.mean(), next(net.parameters()))
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("position", "closest"), [(0.0, "fake"), (1.0, "real")])
def test_the_point_between_lies_at_the_generated_image_at_0(position: float, closest: str) -> None:
    net, x, y = smooth_discriminator(), images(1), images(2)
    at = (x if closest == "real" else y).clone().requires_grad_()
    expected = (squared_gradient(score(net, at), at).sqrt() - 1).square()
    torch.testing.assert_close(one_centred(net, x, y, torch.full((NUM, 1), position, dtype=torch.float64)), expected)


@pytest.mark.parametrize("name", PENALTIES)
def test_an_image_has_the_penalty_that_it_has_alone(name: str, position: Tensor) -> None:
    net, x, y = smooth_discriminator(), images(1), images(2)
    together = PENALTIES[name](net, x, y, position)
    for n in range(NUM):
        row = slice(n, n + 1)
        torch.testing.assert_close(PENALTIES[name](net, x[row], y[row], position[row]), together[row])


def test_no_gradient_reaches_what_made_the_images() -> None:
    net, source = smooth_discriminator(), images(2).requires_grad_()
    half = torch.full((NUM, 1), 0.5, dtype=torch.float64)
    penalty = one_centred(net, images(1), source * 3, half).mean()
    (gradient,) = torch.autograd.grad(penalty, source, allow_unused=True)
    assert gradient is None


@given(st.integers(1, 40), st.integers(0, 10**9))
def test_a_lazy_penalty_comes_once_in_so_many_batches_and_at_the_first(every: int, start: int) -> None:
    assert due(0, every)
    assert sum(due(index, every) for index in range(start, start + every)) == 1
    assert due(start, every) == due(start + every, every)
