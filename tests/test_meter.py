import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.meter import Meter
from shoal.world import World


@pytest.fixture
def meter() -> Meter:
    return Meter(World.local("cpu"))


values = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=9)


@given(st.lists(values, min_size=1, max_size=8))
def test_the_mean_is_over_images_not_over_batches(batches: list[list[float]]) -> None:
    meter = Meter(World.local("cpu"))
    for batch in batches:
        meter.add({"loss/x": torch.tensor(batch)}, len(batch))
    flat = [value for batch in batches for value in batch]
    assert meter.take() == pytest.approx({"loss/x": sum(flat) / len(flat)}, rel=1e-5, abs=1e-4)


def test_a_scalar_stands_for_all_images_of_its_batch(meter: Meter) -> None:
    meter.add({"loss/x": torch.tensor(1.0)}, 3)
    meter.add({"loss/x": torch.tensor(5.0)}, 1)
    assert meter.take() == {"loss/x": 2.0}


def test_taking_starts_anew(meter: Meter) -> None:
    meter.add({"loss/x": torch.tensor([1.0, 3.0])}, 2)
    assert meter.take() == {"loss/x": 2.0}
    assert meter.take() == {}
    meter.add({"loss/x": torch.tensor([7.0])}, 1)
    assert meter.take() == {"loss/x": 7.0}


def test_a_measure_that_comes_every_other_batch_is_a_mean_of_those(meter: Meter) -> None:
    meter.add({"loss/a": torch.tensor([1.0, 1.0]), "loss/b": torch.tensor([4.0, 6.0])}, 2)
    meter.add({"loss/a": torch.tensor([2.0, 2.0])}, 2)
    assert meter.take() == {"loss/a": 1.5, "loss/b": 5.0}


def test_small_values_are_not_lost_beside_large_sums(meter: Meter) -> None:
    meter.add({"loss/x": torch.tensor(2.0**30)}, 1)
    for _ in range(1000):
        meter.add({"loss/x": torch.tensor(1.0)}, 1)
    assert meter.take()["loss/x"] == (2**30 + 1000) / 1001


def test_it_keeps_no_graph_and_changes_nothing(meter: Meter) -> None:
    weight = torch.ones(3, requires_grad=True)
    loss = weight * 2
    meter.add({"loss/x": loss}, 3)
    assert loss.requires_grad
    torch.autograd.backward(loss.sum())
    assert weight.grad is not None
    assert weight.grad.tolist() == [2, 2, 2]
    assert meter.take() == {"loss/x": 2.0}


def test_a_loss_that_is_no_number_shows(meter: Meter) -> None:
    meter.add({"loss/x": torch.tensor([1.0, float("nan")])}, 2)
    meter.add({"loss/x": torch.tensor([1.0, 1.0])}, 2)
    assert math.isnan(meter.take()["loss/x"])
