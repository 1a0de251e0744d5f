"""The projection discriminator against its equation."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from shoal.nets import NetConfig, parse_net
from shoal.nets.network import Network
from shoal.nets.projection import Projection, project_onto_classes

SHAPE = (1, 28, 28)
CLASSES = 3
FAMILIES: dict[str, dict[str, Any]] = {
    "conv": {"width": 4, "hidden": 5},
    "mlp": {"hidden": [6]},
    "resnet": {"width": 4, "norm": "none"},
}


@pytest.fixture(params=FAMILIES)
def values(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"name": request.param, "activation": "leaky_relu", **FAMILIES[request.param]}


def test_the_score_by_hand() -> None:
    linear = nn.Linear(2, 1)
    score = Projection(linear, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0]]))
        linear.bias.fill_(0.5)
        score.embedding.weight.copy_(torch.tensor([[10.0, 0.0], [0.0, 100.0]]))
    phi = torch.tensor([[1.0, 1.0], [1.0, 1.0], [2.0, -1.0]])
    # w . phi + b is 3.5, 3.5, 0.5; <v_y, phi> is 10, 100, -100
    assert score(phi, torch.tensor([0, 1, 1])).equal(torch.tensor([[13.5], [103.5], [-99.5]]))


@pytest.mark.parametrize("spectral", [False, True])
def test_scores_are_those_of_the_equation(values: dict[str, Any], spectral: bool) -> None:
    torch.manual_seed(0)
    net = parse_net({**values, "spectral_norm": spectral}).discriminator(SHAPE, CLASSES).eval()
    images, labels = torch.rand(5, *SHAPE), torch.tensor([0, 1, 2, 2, 1])
    *trunk, last = net
    assert isinstance(last, Projection)
    phi = Network(trunk, {})(images)
    w, b, v = (tensor.detach() for tensor in (last.linear.weight, last.linear.bias, last.embedding.weight))
    expected = [
        sum(float(w[0, k] * row[k] + v[label, k] * row[k]) for k in range(len(row))) + float(b)
        for row, label in zip(phi.detach(), labels.tolist(), strict=True)
    ]
    assert net(images, labels).shape == (5, 1)
    torch.testing.assert_close(net(images, labels).flatten(), torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_without_classes_it_is_an_encoder_with_one_feature(values: dict[str, Any]) -> None:
    nets = parse_net(values)
    built: list[dict[str, Tensor]] = []
    for build in (partial(nets.encoder, SHAPE, 1), partial(nets.discriminator, SHAPE)):
        torch.manual_seed(0)
        built.append(build().state_dict())
    encoder, discriminator = built
    assert list(encoder) == list(discriminator)
    assert all(tensor.equal(discriminator[name]) for name, tensor in encoder.items())
    images = torch.rand(3, *SHAPE)
    net = nets.discriminator(SHAPE)
    assert net(images, torch.tensor([0, 1, 2])).equal(net(images))


def test_spectral_norm_is_on_all_of_it(values: dict[str, Any]) -> None:
    net = parse_net({**values, "spectral_norm": True}).discriminator(SHAPE, CLASSES)
    with torch.no_grad():
        for _ in range(100):
            net(torch.rand(2, *SHAPE), torch.tensor([0, 1]))
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear | nn.Conv2d | nn.Embedding)]
    assert any(isinstance(layer, nn.Embedding) for layer in layers)
    for layer in layers:
        assert is_parametrized(layer, "weight")
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1.0, abs=0.01)


def test_every_parameter_has_a_gradient(values: dict[str, Any]) -> None:
    for spectral in (False, True):
        net = parse_net({**values, "spectral_norm": spectral}).discriminator(SHAPE, CLASSES)
        net(torch.rand(2, *SHAPE), torch.tensor([1, 1])).sum().backward()
        assert all(weight.grad is not None for weight in net.parameters())


def test_a_penalty_on_its_gradient_can_be_descended() -> None:
    torch.manual_seed(0)
    nets: NetConfig = parse_net({"name": "mlp", "hidden": [3], "activation": "silu"})
    net = nets.discriminator((1, 2, 2), 2).double()
    images = torch.randn(2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1])
    names, tensors = zip(*net.named_parameters(), strict=True)

    def penalty(*weights: Tensor) -> Tensor:
        score = torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (images, labels))
        (slope,) = torch.autograd.grad(score.sum(), images, create_graph=True)
        return slope.square().sum()

    assert torch.autograd.gradcheck(penalty, tensors)


def test_it_is_as_large_at_first_as_a_score_without_classes(values: dict[str, Any]) -> None:
    torch.manual_seed(0)
    last = parse_net(values).discriminator(SHAPE, CLASSES)[-1]
    assert isinstance(last, Projection)
    for weight in (last.linear.weight, last.embedding.weight):
        assert weight.abs().max().item() <= last.linear.in_features**-0.5


def test_an_encoder_that_ends_otherwise_is_refused() -> None:
    with pytest.raises(TypeError, match=r"ends in Tanh has no projection; it must end in nn\.Linear"):
        project_onto_classes(Network([nn.Linear(2, 1), nn.Tanh()], {}), 2, spectral_norm=False)
