"""Decoders that know the class: conditional norms where there are norms, else a bias per class."""

from typing import Any

import pytest
import torch
from torch import nn

from shoal.nets import NetConfig, parse_net
from shoal.nets.conditional import ClassBias, ConditionalNorm
from shoal.nets.family import Network, TakesLabels
from shoal.nets.norms import Norm, build_norm

SHAPE = (1, 28, 28)
CLASSES = 4
FAMILIES: dict[str, dict[str, Any]] = {
    f"{name}, {norm}": {"name": name, "width": 4, "norm": norm}
    for name in ("conv", "resnet")
    for norm in ("group", "batch", "none")
}
FAMILIES["mlp"] = {"name": "mlp", "hidden": [6, 5]}
FAMILIES["mlp of one layer"] = {"name": "mlp", "hidden": []}
FAMILIES["conv, hidden"] = {"name": "conv", "width": 4, "hidden": 6, "norm": "none", "init_std": 0.02}
FAMILIES["conv, nearest"] = {"name": "conv", "width": 4, "hidden": 6, "norm": "batch", "upsampling": "nearest"}


@pytest.fixture(params=FAMILIES)
def nets(request: pytest.FixtureRequest) -> NetConfig:
    return parse_net({"latent": 3, **FAMILIES[request.param]})


def conditional(nets: NetConfig) -> Network:
    """Return a decoder that has already learned to tell classes apart."""
    torch.manual_seed(0)
    net = nets.decoder(SHAPE, 3, CLASSES)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return net


@pytest.mark.parametrize("kind", ["group", "batch"])
def test_a_conditional_norm_by_hand(kind: Norm) -> None:
    torch.manual_seed(0)
    norm = build_norm(kind, 8, CLASSES)
    assert isinstance(norm, ConditionalNorm)
    x, labels = torch.randn(5, 8, 3, 3), torch.tensor([2, 0, 2, 3, 0])
    plain = build_norm(kind, 8)(x)
    torch.testing.assert_close(norm(x, labels), plain)  # gain 1, bias 0
    with torch.no_grad():
        norm.gain.copy_(torch.rand(CLASSES, 8))
        norm.bias.copy_(torch.rand(CLASSES, 8))
    expected = torch.empty_like(x)
    for image, label in enumerate(labels.tolist()):
        for channel in range(8):
            expected[image, channel] = norm.gain[label, channel] * plain[image, channel] + norm.bias[label, channel]
    torch.testing.assert_close(norm(x, labels), expected)


def test_a_norm_without_classes_is_torchs() -> None:
    assert isinstance(build_norm("batch", 8), nn.BatchNorm2d)
    assert isinstance(build_norm("group", 8), nn.GroupNorm)
    assert isinstance(build_norm("none", 8, CLASSES), nn.Identity)


def test_a_bias_per_class_is_a_one_hot_label_beside_the_input() -> None:
    torch.manual_seed(0)
    first = nn.Linear(3, 5)
    bias = ClassBias(first, CLASSES)
    z, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 3, 0])
    beside = torch.cat([z, nn.functional.one_hot(labels, CLASSES)], dim=1)
    expected = beside @ torch.cat([first.weight, bias.bias.T], dim=1).T + first.bias
    torch.testing.assert_close(bias(first(z), labels), expected)


def test_the_class_shows(nets: NetConfig) -> None:
    net = conditional(nets)
    z = torch.randn(1, 3).expand(CLASSES, 3)
    images = net(z, torch.arange(CLASSES))
    assert images.shape == (CLASSES, *SHAPE)
    for one in range(CLASSES):
        for other in range(one):
            assert (images[one] - images[other]).abs().max() > 1e-4


def test_an_image_depends_on_its_own_label_alone(nets: NetConfig) -> None:
    net = conditional(nets).eval()  # batch norm with the statistics it has kept
    z, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 1])
    together = net(z, labels)
    alone = torch.cat([net(z[[i]], labels[[i]]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_every_parameter_has_a_gradient_though_a_class_is_absent(nets: NetConfig) -> None:
    net = conditional(nets)
    net(torch.randn(4, 3), torch.tensor([0, 0, 1, 1])).square().sum().backward()
    tables = [layer for layer in net.modules() if isinstance(layer, ConditionalNorm | ClassBias)]
    assert tables
    for name, weight in net.named_parameters():
        assert weight.grad is not None, name
    for layer in tables:
        assert layer.bias.grad is not None
        assert layer.bias.grad[:2].abs().sum() > 0
        assert not layer.bias.grad[2:].any()


def test_a_network_for_classes_is_called_with_labels(nets: NetConfig) -> None:
    with pytest.raises(AssertionError, match="called with labels"):
        conditional(nets)(torch.randn(2, 3))


def test_without_classes_labels_change_nothing(nets: NetConfig) -> None:
    net = nets.decoder(SHAPE, 3)
    assert not any(isinstance(layer, ConditionalNorm | ClassBias) for layer in net.modules())
    z = torch.randn(2, 3)
    assert net(z, torch.tensor([0, 1])).equal(net(z))


def test_norms_are_conditional_and_only_they(nets: NetConfig) -> None:
    net = nets.decoder(SHAPE, 3, CLASSES)
    kinds = {type(layer) for layer in net.modules() if isinstance(layer, TakesLabels)} & {ConditionalNorm, ClassBias}
    assert kinds == ({ConditionalNorm} if getattr(nets, "norm", "none") != "none" else {ClassBias})
    affine = [layer.affine for layer in net.modules() if isinstance(layer, nn.GroupNorm | nn.BatchNorm2d)]
    assert not any(affine)
