"""A 3x3 convolution and a change of size by two in one convolution, against the two one after the other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, interpolate

from shoal.nets.resample import DownConv, UpConv

channels = st.integers(1, 5)
heights = st.integers(1, 6)


def gradients(out: Tensor, x: Tensor, layer: nn.Conv2d, direction: Tensor) -> tuple[Tensor, ...]:
    assert layer.bias is not None
    return torch.autograd.grad(out, (x, layer.weight, layer.bias), direction)


@given(before=channels, after=channels, height=heights, width=heights)
def test_up_is_nearest_neighbour_then_a_convolution(before: int, after: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    layer = UpConv(before, after).double()
    x = torch.randn(2, before, height, width, dtype=torch.float64, requires_grad=True)
    got = layer(x)
    expected = conv2d(interpolate(x, scale_factor=2, mode="nearest"), layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(got, expected)
    direction = torch.randn_like(expected)
    torch.testing.assert_close(gradients(got, x, layer, direction), gradients(expected, x, layer, direction))


@given(before=channels, after=channels, height=heights, width=heights)
def test_down_is_a_convolution_then_the_mean_of_2x2(before: int, after: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    layer = DownConv(before, after).double()
    x = torch.randn(2, before, 2 * height, 2 * width, dtype=torch.float64, requires_grad=True)
    got = layer(x)
    expected = avg_pool2d(conv2d(x, layer.weight, layer.bias, padding=1), 2)
    torch.testing.assert_close(got, expected)
    direction = torch.randn_like(expected)
    torch.testing.assert_close(gradients(got, x, layer, direction), gradients(expected, x, layer, direction))


def test_up_by_hand() -> None:
    layer = UpConv(1, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 0, 0], [0, 1, 2], [0, 0, 0]]))  # itself and twice its right neighbour
        layer.bias.fill_(0.5)  # type: ignore[union-attr]
    expected = torch.tensor([[3.0, 5, 6, 2], [3, 5, 6, 2]]) + 0.5  # of 1 1 2 2 in both rows
    assert layer(torch.tensor([[[[1.0, 2.0]]]])).equal(expected[None, None])


def test_up_writes_an_even_image_evenly_where_a_transposed_convolution_leaves_a_checkerboard() -> None:
    def inside(layer: nn.Module) -> Tensor:
        with torch.no_grad():
            for weight in layer.parameters():
                weight.fill_(1.0)
            out: Tensor = layer(torch.ones(1, 1, 6, 6))
        return out[0, 0, 2:-2, 2:-2]

    assert inside(UpConv(1, 1)).std() == 0
    assert inside(nn.ConvTranspose2d(1, 1, 3, stride=2, padding=1, output_padding=1)).std() > 0


@pytest.mark.parametrize("channels", [(1, 1), (4, 1), (1, 4), (3, 2)])
@pytest.mark.parametrize("kind", [UpConv, DownConv])
def test_the_gradient_is_laid_out_as_the_weight_which_spares_ddp_a_copy(
    kind: type[UpConv | DownConv], channels: tuple[int, int]
) -> None:
    layer = kind(*channels)
    (gradient,) = torch.autograd.grad(layer(torch.randn(2, channels[0], 4, 4)).sum(), layer.weight)
    assert gradient.stride() == layer.weight.stride()


def test_the_constant_in_it_is_not_saved() -> None:
    assert list(UpConv(2, 3).state_dict()) == ["weight", "bias"]
    assert isinstance(DownConv(2, 3), nn.Conv2d)


@pytest.mark.parametrize("kind", [UpConv, DownConv])
def test_second_derivatives_are_right(kind: type[UpConv | DownConv]) -> None:
    torch.manual_seed(0)
    layer = kind(2, 1).double()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)

    def squared(x: Tensor, weight: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(layer, {"weight": weight}, (x,))
        return out.square()

    assert torch.autograd.gradgradcheck(squared, (x, layer.weight))
