import math
from itertools import accumulate, pairwise
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.schedule import OptimConfig, due, learning_rate_factor

Shape = Literal["constant", "cosine", "linear"]

shapes: st.SearchStrategy[Shape] = st.sampled_from(["constant", "cosine", "linear"])


@given(st.integers(1, 50), st.lists(st.integers(1, 120), min_size=1, max_size=40))
def test_due_is_told_exactly_once_per_multiple(every: int, steps: list[int]) -> None:
    clock = [0, *accumulate(steps)]
    told = [(before, now) for before, now in pairwise(clock) if due(every, before, now)]
    for multiple in range(every, clock[-1] + 1, every):
        assert sum(before < multiple <= now for before, now in told) == 1
    for before, now in told:
        assert any(before < multiple <= now for multiple in range(every, clock[-1] + 1, every))


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_every_zero_is_never_due(before: int, step: int) -> None:
    assert not due(0, before, before + step)


@given(
    st.integers(0, 10_000),
    st.integers(1, 5000),
    shapes,
    st.integers(0, 6000),
    st.floats(0, 1),
)
def test_the_factor_stays_between_0_and_1(
    samples: int, duration: int, shape: Shape, warmup: int, final_factor: float
) -> None:
    factor = learning_rate_factor(samples, duration, shape=shape, warmup_samples=warmup, final_factor=final_factor)
    assert 0 <= factor <= 1


@given(shapes, st.integers(1, 1000), st.integers(1, 1000), st.floats(0, 1), st.data())
def test_warm_up_is_a_straight_line_from_0_to_1(
    shape: Shape, warmup: int, rest: int, final_factor: float, data: st.DataObject
) -> None:
    def factor(samples: int) -> float:
        return learning_rate_factor(
            samples, warmup + rest, shape=shape, warmup_samples=warmup, final_factor=final_factor
        )

    samples = data.draw(st.integers(0, warmup))
    assert factor(0) == 0
    assert factor(samples) == pytest.approx(samples / warmup)
    assert factor(warmup) == pytest.approx(1)


@given(shapes, st.integers(0, 500), st.integers(1, 500), st.floats(0, 1), st.data())
def test_after_the_warm_up_it_never_rises_and_ends_where_it_should(
    shape: Shape, warmup: int, rest: int, final_factor: float, data: st.DataObject
) -> None:
    duration = warmup + rest

    def factor(samples: int) -> float:
        return learning_rate_factor(samples, duration, shape=shape, warmup_samples=warmup, final_factor=final_factor)

    samples = data.draw(st.integers(warmup, duration))
    assert factor(samples) >= factor(samples + 1) - 1e-12
    assert factor(duration) == (1 if shape == "constant" else final_factor)
    assert factor(duration + 1000) == factor(duration)


def test_the_middle_of_each_shape() -> None:
    def factor(shape: Shape, samples: int) -> float:
        return learning_rate_factor(samples, 1000, shape=shape, warmup_samples=200, final_factor=0.1)

    assert factor("constant", 600) == 1
    assert factor("linear", 600) == pytest.approx(0.55)
    assert factor("cosine", 600) == pytest.approx(0.55)
    assert factor("linear", 400) == pytest.approx(0.1 + 0.9 * 0.75)
    assert factor("cosine", 400) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_it_may_fall_over_the_last_share_only() -> None:
    def factor(samples: int, warmup: int = 200) -> float:
        return learning_rate_factor(
            samples, 1000, shape="linear", warmup_samples=warmup, final_factor=0.1, decay_share=0.3
        )

    assert [factor(samples) for samples in (100, 200, 600, 700)] == [0.5, 1, 1, 1]
    assert [factor(samples) for samples in (850, 1000, 2000)] == pytest.approx([0.55, 0.1, 0.1])
    assert factor(900, warmup=800) == pytest.approx(0.55)  # never before the warm-up has ended


def test_the_configuration_speaks_of_the_same_curve() -> None:
    optim = OptimConfig(schedule="cosine", warmup_samples=200, final_factor=0.1, decay_share=0.7)
    for samples in (0, 100, 200, 600, 1000):
        assert optim.factor(samples, 1000) == learning_rate_factor(
            samples, 1000, shape="cosine", warmup_samples=200, final_factor=0.1, decay_share=0.7
        )
