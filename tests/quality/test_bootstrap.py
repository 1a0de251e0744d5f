import numpy as np
import pytest
import torch
from torch import Tensor

from shoal.quality import bootstrap
from shoal.quality.bootstrap import frechet_interval, inception_interval, kernel_interval, mean_intervals, resample
from shoal.quality.distance import Moments, frechet_distance, inception_score, kernel_distance


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_replicate_draws_as_many_images_as_there_are() -> None:
    counts = resample(50, 400, torch.Generator().manual_seed(0))
    assert counts.shape == (50, 400)
    assert (counts.sum(0) == 50).all()
    assert counts.mean() == 1
    assert counts.var().item() == pytest.approx(1 - 1 / 50, rel=0.03)  # multinomial


def test_the_interval_of_a_mean_holds_it_95_times_in_100() -> None:
    values = draw(60, 300).exp()  # 300 experiments with 60 skewed values each
    held = np.mean([low < np.exp(0.5) < high for low, high in mean_intervals(values)])
    assert 0.88 < held < 0.97  # a little less than 0.95, as known of so few skewed values


def test_the_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    values = draw(400, 1)
    ((low, high),) = mean_intervals(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std().item() / 20, rel=0.1)
    assert low < values.mean() < high


def test_intervals_are_the_same_every_time_and_however_the_draws_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    values = draw(40, 2)
    first = mean_intervals(values)
    assert mean_intervals(values) == first
    monkeypatch.setattr(bootstrap, "DRAWS_IN_MEMORY", 40 * 7)
    assert mean_intervals(values) == first


@pytest.mark.parametrize("kind", ["frechet", "kernel"])
def test_the_interval_of_a_distance_is_as_wide_as_other_images_would_make_it(kind: str) -> None:
    def distances(x: Tensor, y: Tensor) -> float:
        return frechet_distance(Moments.of(x), Moments.of(y)) if kind == "frechet" else kernel_distance(x, y)

    experiments = [(draw(300, 4, seed=2 * i), 1.3 * draw(300, 4, seed=2 * i + 1) + 0.5) for i in range(120)]
    spread = np.std([distances(x, y) for x, y in experiments])
    widths, held, truth = [], [], np.mean([distances(x, y) for x, y in experiments])
    for x, y in experiments[:25]:
        estimate = distances(x, y)
        low, high = frechet_interval(x, y, estimate) if kind == "frechet" else kernel_interval(x, y)[1]
        assert (low + high) / 2 == pytest.approx(estimate)
        widths.append(high - low)
        held.append(low < truth < high)
    assert np.mean(widths) == pytest.approx(2 * 1.96 * spread, rel=0.2)
    assert np.mean(held) > 0.8


def test_estimates_come_with_their_intervals() -> None:
    x, y = draw(50, 3), draw(60, 3, seed=1) + 1
    assert kernel_interval(x, y)[0] == pytest.approx(kernel_distance(x, y))
    probabilities = (2 * draw(80, 4)).softmax(1)
    score, (low, high) = inception_interval(probabilities)
    assert score == pytest.approx(inception_score(probabilities))
    assert low < score < high < score + 1
