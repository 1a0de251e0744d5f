"""What each image adds to a kernel distance: their mean is the distance, and their spread its error."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal.quality import distance
from shoal.quality.bootstrap import resample
from shoal.quality.distance import kernel_distance, kernel_distances, kernel_parts


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kernel(one: Tensor, other: Tensor) -> float:
    product: float = sum(a * b for a, b in zip(one.tolist(), other.tolist(), strict=True))
    root = product / len(one) + 1
    return root * root * root


def standard_error(parts: Tensor) -> float:
    return parts.std().item() / math.sqrt(len(parts))


@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 8), st.integers(0, 99), st.floats(0.1, 10))
def test_their_mean_is_the_distance(m: int, n: int, size: int, seed: int, scale: float) -> None:
    x, y = scale * draw(m, size, seed=seed), scale * (draw(n, size, seed=seed + 1) + 0.5)
    parts = kernel_parts(x, y)
    assert (parts.shape, parts.dtype) == ((n,), torch.float64)
    largest = parts.abs().max().item() + kernel_parts(y, x).abs().max().item()
    assert parts.mean().item() == pytest.approx(kernel_distance(x, y), rel=1e-9, abs=1e-12 * largest)


def test_each_is_what_the_definition_says() -> None:
    x, y = draw(5, 3), draw(4, 3, seed=1) + 0.3
    within = [sum(kernel(y[i], y[j]) for j in range(4) if j != i) / 3 for i in range(4)]
    between = [sum(kernel(y[i], x[j]) for j in range(5)) / 5 for i in range(4)]
    real = sum(kernel(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20
    expected = [2 * own - sum(within) / 4 - 2 * other + real for own, other in zip(within, between, strict=True)]
    assert kernel_parts(x, y).tolist() == pytest.approx(expected, rel=1e-12)


def test_they_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(50, 6), draw(37, 6, seed=1)
    whole = kernel_parts(x, y)
    monkeypatch.setattr(distance, "BLOCK", 8)
    torch.testing.assert_close(kernel_parts(x, y), whole, rtol=1e-12, atol=1e-12)


def test_the_order_of_the_images_is_theirs() -> None:
    x, y, order = draw(20, 4), draw(15, 4, seed=1), torch.randperm(15, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(kernel_parts(x, y[order]), kernel_parts(x, y)[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shift", [0.5, 2.0])
def test_their_error_is_the_jackknifes(shift: float) -> None:
    # Leaving one of y out of a U-statistic of two stretches what it adds to the pairs by (n - 1) / (n - 2).
    x, y = draw(40, 5), draw(60, 5, seed=1) + shift
    n = len(y)
    without = torch.tensor([kernel_distance(x, torch.cat([y[:i], y[i + 1 :]])) for i in range(n)], dtype=torch.float64)
    jackknife = math.sqrt((n - 1) / n * (without - without.mean()).square().sum().item())
    assert standard_error(kernel_parts(x, y)) == pytest.approx(jackknife, rel=3 / (n - 2))


@pytest.mark.parametrize("shift", [0.5, 2.0])
def test_their_error_is_the_bootstraps_for_given_images_x(shift: float) -> None:
    x, y = draw(80, 5), draw(300, 5, seed=1) + shift
    replicates = 2_000
    weights = resample(len(y), replicates, torch.Generator().manual_seed(0))
    drawn = kernel_distances(x, y, torch.ones(len(x), replicates, dtype=torch.float64), weights)
    # 2,000 replicates tell a standard deviation to 1.6 %.
    assert standard_error(kernel_parts(x, y)) == pytest.approx(drawn.std().item(), rel=0.08)


def test_their_error_is_that_of_fresh_images() -> None:
    x = draw(60, 4)
    found = [kernel_parts(x, draw(80, 4, seed=seed) + 1) for seed in range(1, 301)]
    true = torch.stack([parts.mean() for parts in found]).std().item()
    told = torch.tensor([standard_error(parts) for parts in found]).mean().item()
    assert told == pytest.approx(true, rel=0.1)


def test_the_difference_of_two_models_of_the_same_noise_is_told_more_surely() -> None:
    x, noise = draw(100, 5), draw(200, 5, seed=1)
    one, other = kernel_parts(x, noise + 0.5), kernel_parts(x, 1.05 * noise + 0.45)
    unpaired = math.hypot(standard_error(one), standard_error(other))
    assert standard_error(one - other) < unpaired / 2
    strangers = kernel_parts(x, 1.05 * draw(200, 5, seed=2) + 0.45)
    assert standard_error(one - strangers) > unpaired / 2
    # The difference's own error is the true one: what the differences scatter by when the noise is drawn anew.
    again = [
        (kernel_parts(x, new + 0.5) - kernel_parts(x, 1.05 * new + 0.45)).mean()
        for new in (draw(200, 5, seed=seed) for seed in range(10, 210))
    ]
    assert standard_error(one - other) == pytest.approx(torch.stack(again).std().item(), rel=0.3)
