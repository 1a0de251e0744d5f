from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from shoal.quality import distance
from shoal.quality.distance import Moments, frechet_distance, inception_score, kernel_distance, kernel_distances


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def like_features(num: int, size: int, seed: int) -> Tensor:
    """Return what a network's features look like: correlated, cut off at zero, some of them dead."""
    features = (draw(num, size, seed=seed) @ draw(size, size, seed=99) / 3 + 0.5 * draw(1, size, seed=98)).relu()
    features[:, : size // 8] = 0
    return features


# --- Frechet -----------------------------------------------------------------------------------------------------


def test_frechet_of_gaussians_on_a_line() -> None:
    one, other = (
        Moments(torch.tensor([m], dtype=torch.float64), torch.tensor([[v]]).double()) for m, v in [(1, 4), (3, 25)]
    )
    assert frechet_distance(one, other) == pytest.approx((1 - 3) ** 2 + (2 - 5) ** 2)


@pytest.mark.parametrize("size", [2, 5, 40])
def test_frechet_of_gaussians_with_the_same_axes_is_the_closed_form(size: int) -> None:
    axes = torch.linalg.qr(draw(size, size)).Q
    a, b = draw(size, seed=1).square(), draw(size, seed=2).square()
    mean_a, mean_b = draw(size, seed=3), draw(size, seed=4)
    found = frechet_distance(Moments(mean_a, axes * a @ axes.T), Moments(mean_b, axes * b @ axes.T))
    expected = (mean_a - mean_b).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    assert found == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_of_gaussians_with_other_axes_is_the_trace_formula() -> None:
    a, b = (m @ m.T for m in (draw(6, 6, seed=1), draw(6, 6, seed=2)))
    root = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    found = frechet_distance(Moments(torch.zeros(6).double(), a), Moments(torch.zeros(6).double(), b))
    assert found == pytest.approx((a.trace() + b.trace() - 2 * root).item(), rel=1e-9)


@pytest.mark.parametrize(("num", "size", "scale"), [(50, 8, 1.0), (500, 128, 1.0), (40, 128, 30.0), (2, 16, 1e3)])
def test_frechet_of_features_and_themselves_is_zero(num: int, size: int, scale: float) -> None:
    moments = Moments.of(like_features(num, size, 0) * scale)
    assert frechet_distance(moments, moments) < 1e-6


def test_frechet_does_not_depend_on_the_order() -> None:
    one, other = Moments.of(like_features(300, 32, 0)), Moments.of(draw(200, 32, seed=5))
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-9)


def test_counts_stand_for_repetition() -> None:
    x, counts = draw(7, 3), torch.tensor([0, 1, 3, 2, 0, 1, 2]).double()
    repeated = Moments.of(x.repeat_interleave(counts.long(), dim=0))
    weighted = Moments.of(x, counts)
    torch.testing.assert_close(weighted.mean, repeated.mean)
    torch.testing.assert_close(weighted.covariance, repeated.covariance)
    torch.testing.assert_close(Moments.of(x).covariance, torch.cov(x.T))


@pytest.mark.parametrize(("num", "size"), [(600, 16), (400, 128)])
def test_frechet_agrees_with_torch_fidelity(num: int, size: int) -> None:
    x, y = like_features(num, size, 0), like_features(num, size, 1) * 1.2
    theirs = fid_statistics_to_metric(fid_features_to_statistics(x), fid_features_to_statistics(y), False)
    ours = frechet_distance(Moments.of(x), Moments.of(y))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)


# --- kernel ------------------------------------------------------------------------------------------------------


def slow_kernel_distance(x: Tensor, y: Tensor) -> float:
    """Return eq. 4 of arXiv:1801.01401, pair by pair."""

    def k(a: Tensor, b: Tensor) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    within_x = [k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    within_y = [k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    between = [k(a, b) for a in x for b in y]
    return float(np.mean(within_x) + np.mean(within_y) - 2 * np.mean(between))


@pytest.mark.parametrize("block", [1, 3, 7, 1000])
@pytest.mark.parametrize(("m", "n"), [(7, 7), (6, 11), (2, 9)])
def test_kernel_distance_is_the_mean_over_pairs(m: int, n: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distance, "BLOCK", block)
    x, y = draw(m, 4), draw(n, 4, seed=1) + 0.5
    assert kernel_distance(x, y) == pytest.approx(slow_kernel_distance(x, y), rel=1e-9)


def test_kernel_distance_is_unbiased() -> None:
    values = [kernel_distance(draw(12, 3, seed=2 * i), draw(12, 3, seed=2 * i + 1)) for i in range(400)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error
    assert error < 0.05  # or the line above says nothing


@pytest.mark.parametrize("block", [2, 1000])
def test_weights_of_the_kernel_distance_stand_for_pairs(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distance, "BLOCK", block)
    x, y = draw(5, 3), draw(4, 3, seed=1) + 1
    weights = (
        torch.tensor([[1.0, 2, 0, 1, 1], [1, 1, 1, 1, 1]]).T.double(),
        torch.tensor([[3.0, 0, 0, 1], [1, 1, 1, 1]]).T.double(),
    )
    first, second = kernel_distances(x, y, *weights).tolist()
    assert second == pytest.approx(kernel_distance(x, y))

    def mean(a: Tensor, b: Tensor, u: Tensor, v: Tensor, *, same: bool) -> float:
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if not (same and i == j)]
        total = sum(float(u[i] * v[j]) for i, j in pairs)
        return sum(float(u[i] * v[j] * (a[i] @ b[j] / 3 + 1) ** 3) for i, j in pairs) / total

    u, v = weights[0][:, 0], weights[1][:, 0]
    expected = mean(x, x, u, u, same=True) + mean(y, y, v, v, same=True) - 2 * mean(x, y, u, v, same=False)
    assert first == pytest.approx(expected)


def test_kernel_distance_agrees_with_torch_fidelity() -> None:
    x, y = like_features(200, 32, 0), like_features(200, 32, 1) * 1.2
    options: dict[str, Any] = {"kid_subsets": 1, "kid_subset_size": 200, "verbose": False}
    theirs = kid_features_to_metric(x, y, **options)["kernel_inception_distance_mean"]
    assert kernel_distance(x, y) == pytest.approx(theirs, rel=1e-3)


# --- Inception Score ---------------------------------------------------------------------------------------------


def test_inception_score_goes_from_one_to_the_number_of_classes() -> None:
    assert inception_score(torch.full((6, 3), 1 / 3).double()) == pytest.approx(1)
    assert inception_score(torch.eye(3).double().repeat(2, 1)) == pytest.approx(3)
    assert inception_score(torch.eye(3).double()[[0, 0, 1, 1]]) == pytest.approx(2)


def test_inception_score_by_hand() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.3, 0.7]]).double()
    # Marginals 0.6 and 0.4.
    divergences = [0.9 * np.log(0.9 / 0.6) + 0.1 * np.log(0.1 / 0.4), 0.3 * np.log(0.3 / 0.6) + 0.7 * np.log(0.7 / 0.4)]
    assert inception_score(probabilities) == pytest.approx(np.exp(np.mean(divergences)))


@given(st.integers(2, 40), st.integers(2, 12), st.integers(0, 1000))
def test_inception_score_agrees_with_torch_fidelity(num: int, classes: int, seed: int) -> None:
    logits = 3 * draw(num, classes, seed=seed)
    theirs = isc_features_to_metric(logits, splits=1)["inception_score_mean"]
    assert inception_score(logits.softmax(1)) == pytest.approx(theirs, rel=1e-6)
