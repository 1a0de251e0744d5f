"""Maps of codes: from an image to a grid of vectors and back."""

from typing import Any

import pytest
import torch
from torch import nn

from shoal.errors import ConfigError
from shoal.nets import MlpConfig, parse_net
from shoal.nets.residual import Residual

FAMILIES: dict[str, dict[str, Any]] = {
    "conv": {"name": "conv"},
    "conv, nearest": {"name": "conv", "upsampling": "nearest", "init_std": 0.02},
    "conv, batch norm": {"name": "conv", "norm": "batch"},
    "conv without norm": {"name": "conv", "norm": "none"},
    "resnet": {"name": "resnet"},
    "resnet without norm": {"name": "resnet", "norm": "none", "blocks": 3},
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "map_size"), [(28, 7), (32, 8), (64, 16), (128, 32)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_map_is_a_quarter_as_high_and_as_wide(family: str, size: int, map_size: int, channels: int) -> None:
    nets = parse_net({"width": 2, **FAMILIES[family]})
    shape = (channels, size, size)
    codes = nets.map_encoder(shape, 5)(torch.rand(2, *shape))
    assert codes.shape == (2, 5, map_size, map_size)
    again = nets.map_decoder(shape, 5)(codes)
    assert again.shape == (2, *shape)
    again.sum().backward()


@pytest.mark.parametrize("family", FAMILIES)
def test_at_least_two_residual_blocks_work_at_the_size_of_the_map(family: str) -> None:
    nets = parse_net({"width": 2, **FAMILIES[family]})
    seen: list[torch.Size] = []
    for net, x in (
        (nets.map_encoder((1, 28, 28), 5), torch.rand(1, 1, 28, 28)),
        (nets.map_decoder((1, 28, 28), 5), torch.rand(1, 5, 7, 7)),
    ):
        blocks = [layer for layer in net if isinstance(layer, Residual) and not has_resampling(layer)]
        for block in blocks:
            block.register_forward_hook(lambda _, __, out: seen.append(out.shape[2:]))
        net(x)
        assert sum(shape == (7, 7) for shape in seen) >= 2
        seen.clear()


def has_resampling(block: Residual) -> bool:
    return any(isinstance(layer, nn.Upsample | nn.AvgPool2d) for layer in block.shortcut)


def test_codes_are_local() -> None:
    torch.manual_seed(0)
    nets = parse_net({"name": "conv", "norm": "none", "width": 4, "init_std": 0.1})
    encoder = nets.map_encoder((1, 64, 64), 3)
    image = torch.rand(1, 1, 64, 64)
    changed = image.clone()
    changed[0, 0, 0, 0] += 1
    moved = (encoder(image) - encoder(changed)).abs().sum((0, 1)) > 0
    assert moved[0, 0]
    assert not moved[8:, :].any()
    assert not moved[:, 8:].any()


def test_an_mlp_has_no_map() -> None:
    for build in (MlpConfig().map_encoder, MlpConfig().map_decoder):
        with pytest.raises(
            ConfigError, match=r"nets.name=mlp has no map of codes; use nets.name=conv or nets.name=resnet"
        ):
            build((1, 28, 28), 3)
