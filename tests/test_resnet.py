"""Residual networks: what a block computes, how it starts, and that depth without norms trains."""

from functools import partial
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, interpolate, leaky_relu

from shoal.nets import ResnetConfig
from shoal.nets.family import ImageShape
from shoal.nets.norms import Norm, build_norm
from shoal.nets.resample import DownConv, UpConv
from shoal.nets.residual import Residual

SHAPES: list[ImageShape] = [(channels, size, size) for size in (28, 32, 64, 128) for channels in (1, 3)]
Size = Literal["same", "up", "down"]


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_reads_and_writes_every_size_it_names(shape: ImageShape, norm: Norm) -> None:
    nets = ResnetConfig(width=2, latent=3, norm=norm)
    images = torch.rand(2, *shape)
    codes = nets.encoder(shape, 3)(images)
    assert codes.shape == (2, 3)
    assert nets.discriminator(shape, 2)(images, torch.tensor([0, 1])).shape == (2, 1)
    again = nets.decoder(shape, 3)(codes)
    assert again.shape == images.shape
    again.sum().backward()


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 3), (3, 2)])
@pytest.mark.parametrize("size", ["same", "up", "down"])
def test_a_block_by_the_book(size: Size, before: int, after: int) -> None:
    torch.manual_seed(0)
    block = Residual(
        before, after, norm=lambda _: nn.Identity(), activate=lambda: nn.LeakyReLU(0.2), size=size, zero=False
    ).double()
    _, _, first, _, _, last = block.branch
    assert isinstance(first, nn.Conv2d)
    assert isinstance(last, nn.Conv2d)
    x = torch.randn(2, before, 6, 6, dtype=torch.float64)

    def double(x: Tensor) -> Tensor:
        return interpolate(x, scale_factor=2, mode="nearest") if size == "up" else x

    def halve(x: Tensor) -> Tensor:
        return avg_pool2d(x, 2) if size == "down" else x

    # Miyato et al. 2018, appendix: sizes change inside the branch, and around the shortcut's 1x1 convolution.
    inside = conv2d(double(leaky_relu(x, 0.2)), first.weight, first.bias, padding=1)
    branch = halve(conv2d(leaky_relu(inside, 0.2), last.weight, last.bias, padding=1))
    kernels = [layer.weight for layer in block.shortcut if isinstance(layer, nn.Conv2d)]
    assert len(kernels) == (before != after)
    shortcut = halve(conv2d(double(x), kernels[0])) if kernels else halve(double(x))
    torch.testing.assert_close(block(x), shortcut + branch)


@pytest.mark.parametrize("size", ["same", "up", "down"])
@pytest.mark.parametrize("norm", ["group", "none"])
def test_a_block_starts_as_its_shortcut(size: Size, norm: Norm) -> None:
    torch.manual_seed(0)
    block = Residual(8, 8, norm=partial(build_norm, norm), activate=nn.ReLU, size=size)
    x = torch.randn(2, 8, 4, 4)
    assert block(x).equal(block.shortcut(x))
    block(x).sum().backward()
    last = block.branch[-1].weight.grad
    assert isinstance(last, Tensor)
    assert last.abs().sum() > 0


def test_first_convolutions_shrink_with_depth() -> None:
    torch.manual_seed(0)
    for depth in (1, 16):
        block = Residual(64, 64, norm=lambda _: nn.Identity(), activate=nn.ReLU, depth=depth)
        first = block.branch[2].weight
        assert isinstance(first, Tensor)
        assert first.std().item() == pytest.approx((2 / (9 * 64 * depth)) ** 0.5, rel=0.02)


@pytest.mark.parametrize(("blocks", "expected"), [(1, 3), (3, 9)])
def test_blocks_are_counted_at_each_size(blocks: int, expected: int) -> None:
    nets = ResnetConfig(width=2, blocks=blocks)
    encoder, decoder = nets.encoder((1, 28, 28), 3), nets.decoder((1, 28, 28), 3)
    for net, resampling in ((encoder, DownConv), (decoder, UpConv)):
        assert sum(isinstance(layer, Residual) for layer in net) == expected
        assert sum(isinstance(layer, resampling) for layer in net.modules()) == 2


def test_the_decoder_mirrors_the_encoder() -> None:
    nets = ResnetConfig(width=4, blocks=2)

    def channels(net: nn.Module) -> list[int]:
        return [layer.branch[2].in_channels for layer in net.children() if isinstance(layer, Residual)]  # type: ignore[misc]

    assert channels(nets.encoder((3, 128, 128), 3)) == [4, 4, 8, 8, 16, 16, 32, 32, 32, 32, 32, 32]
    assert channels(nets.decoder((3, 128, 128), 3)) == [32, 32, 32, 32, 32, 32, 32, 16, 16, 8, 8, 4]


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_a_deep_one_learns_with_and_without_norms(norm: Norm) -> None:
    torch.manual_seed(0)
    nets = ResnetConfig(width=4, latent=8, norm=norm, blocks=4, activation="leaky_relu")
    net = nn.Sequential(nets.encoder((1, 28, 28), 8), nets.decoder((1, 28, 28), 8))
    coarse = torch.rand(8, 1, 2, 2)
    images = interpolate(coarse, size=(28, 28), mode="bilinear")
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = (net(images) - images).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert max(losses) < 1.0  # images lie in [0, 1]: nothing blows up at the start
    assert losses[-1] < 0.6 * images.var().item()
