import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch_fidelity.metric_prc import prc_features_to_metric

from shoal.quality import manifold
from shoal.quality.manifold import MIN_IMAGES, neighbourhoods


def draw(num: int, size: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(num, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(real: Tensor, generated: Tensor) -> dict[str, float]:
    """Return the four measures as their definitions say, ball by ball."""

    def reach(of: Tensor, k: int) -> list[float]:
        return [sorted(float((point - other).norm()) for other in of)[k] for point in of]  # the nearest is itself

    def inside(points: Tensor, of: Tensor, k: int) -> list[list[bool]]:
        radii = reach(of, k)
        return [[float((p - q).norm()) <= r for q, r in zip(of, radii, strict=True)] for p in points]

    near, near_generated, around = inside(generated, real, 3), inside(real, generated, 3), inside(generated, real, 5)
    return {
        "precision": sum(any(row) for row in near) / len(generated),
        "recall": sum(any(row) for row in near_generated) / len(real),
        "density": sum(sum(row) for row in around) / (5 * len(generated)),
        "coverage": sum(any(column) for column in zip(*around, strict=True)) / len(real),
    }


@given(st.integers(MIN_IMAGES, 14), st.integers(MIN_IMAGES, 14), st.integers(1, 4), st.integers(0, 1000))
def test_the_measures_are_what_their_definitions_say(m: int, n: int, size: int, seed: int) -> None:
    real, generated = draw(m, size, seed), draw(n, size, seed + 1, scale=1.5) + 0.3
    found = {name: values.mean().item() for name, values in neighbourhoods(real, generated)._asdict().items()}
    assert found == pytest.approx(slow(real, generated))


@pytest.mark.parametrize("block", [1, 4, 9, 1000])
def test_they_do_not_depend_on_the_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, generated = draw(20, 3, 0), draw(13, 3, 1, scale=1.5)
    whole = neighbourhoods(real, generated)
    monkeypatch.setattr(manifold, "BLOCK", block)
    for one, other in zip(whole, neighbourhoods(real, generated), strict=True):
        assert torch.equal(one, other)


def test_the_same_images_are_all_in_reach_and_far_ones_none() -> None:
    real = draw(30, 4, 0)
    same, far = neighbourhoods(real, real), neighbourhoods(real, real + 100)
    assert same.precision.mean() == same.recall.mean() == same.coverage.mean() == 1
    assert [values.mean().item() for values in far] == [0, 0, 0, 0]


def test_copies_of_one_good_image_are_precise_and_cover_little() -> None:
    real = draw(200, 2, 0)
    found = neighbourhoods(real, real[:1] + draw(200, 2, 1, scale=1e-3))
    assert found.precision.mean() == 1
    assert found.recall.mean() < 0.05
    assert found.coverage.mean() < 0.1


def test_precision_and_recall_agree_with_torch_fidelity() -> None:
    real, generated = draw(300, 8, 0), draw(300, 8, 1, scale=1.2) + 0.2
    theirs = prc_features_to_metric(generated, real, verbose=False)
    found = neighbourhoods(real, generated)
    assert 0.1 < theirs["precision"] < 0.95
    assert found.precision.mean().item() == pytest.approx(theirs["precision"], rel=1e-3)
    assert found.recall.mean().item() == pytest.approx(theirs["recall"], rel=1e-3)
