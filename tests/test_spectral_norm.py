"""Spectral norm on what reads images: what it does to the weights, and that it survives copies, files and resumes."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from shoal.checkpoint import Checkpoint
from shoal.loop import Tick
from shoal.nets import NetConfig, parse_net
from shoal.nets.spectral import WEIGHTED, normalise_weights
from shoal.run import Run

SHAPE = (1, 28, 28)
FAMILIES: dict[str, dict[str, Any]] = {
    "conv": {"width": 4, "norm": "none"},
    "conv, group norm": {"width": 4, "hidden": 5, "init_std": 0.02},
    "mlp": {"hidden": [6, 5]},
    "resnet": {"width": 4, "norm": "none"},
    "resnet, group norm": {"width": 4, "blocks": 2},
}


@pytest.fixture(params=FAMILIES)
def nets(request: pytest.FixtureRequest) -> NetConfig:
    values = {"name": request.param.partition(",")[0], "latent": 3, "activation": "leaky_relu", "spectral_norm": True}
    return parse_net(values | FAMILIES[request.param])


def readers(nets: NetConfig) -> list[nn.Module]:
    torch.manual_seed(0)
    maps = [] if nets.name == "mlp" else [nets.map_encoder(SHAPE, 3)]
    return [nets.encoder(SHAPE, 3), nets.discriminator(SHAPE), *maps]


def weights(net: nn.Module) -> list[Tensor]:
    return [layer.weight for layer in net.modules() if isinstance(layer, WEIGHTED)]


def test_every_weight_of_what_reads_images_has_norm_one(nets: NetConfig) -> None:
    for net in readers(nets):
        images = torch.rand(2, *SHAPE)
        with torch.no_grad():
            for _ in range(200):
                net(images)
        net.eval()
        assert weights(net)
        for weight in weights(net):
            assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1.0, abs=0.01)


def test_what_writes_images_has_none(nets: NetConfig) -> None:
    writers = [nets.decoder(SHAPE, 3), nets.decoder(SHAPE, 3, 4)]
    writers += [] if nets.name == "mlp" else [nets.map_decoder(SHAPE, 3)]
    for net in writers:
        assert not any(is_parametrized(layer) for layer in net.modules())


def test_one_pass_is_one_power_iteration_and_evaluation_none() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    normalise_weights(layer)
    state = {name: tensor.double() for name, tensor in layer.state_dict().items()}
    weight, v = state["parametrizations.weight.original"], state["parametrizations.weight.0._v"]
    x = torch.randn(4, 3)
    out = layer(x)
    u = nn.functional.normalize(weight @ v, dim=0)  # Miyato et al. 2018, algorithm 1
    v = nn.functional.normalize(weight.T @ u, dim=0)
    expected = x.double() @ (weight / (u @ weight @ v)).T + state["bias"]
    torch.testing.assert_close(out, expected.float())
    torch.testing.assert_close(layer.state_dict()["parametrizations.weight.0._u"], u.float())
    torch.testing.assert_close(layer.state_dict()["parametrizations.weight.0._v"], v.float())
    layer.eval()
    before = copy.deepcopy(layer.state_dict())
    assert layer(x).equal(layer(x))
    assert all(tensor.equal(before[name]) for name, tensor in layer.state_dict().items())


def test_no_two_images_are_pushed_apart() -> None:
    net = parse_net({"name": "mlp", "hidden": [16, 16], "spectral_norm": True}).encoder((1, 4, 4), 4)
    one, two = torch.rand(200, 1, 4, 4), torch.rand(200, 1, 4, 4)
    with torch.no_grad():
        for _ in range(200):
            net(one)
        stretch = (net(one) - net(two)).norm(dim=1) / (one - two).flatten(1).norm(dim=1)
    assert stretch.max().item() <= 1.001


def test_a_copy_is_the_same_and_independent(nets: NetConfig) -> None:
    for net in readers(nets):
        twin = copy.deepcopy(net)
        images = torch.rand(2, *SHAPE)
        assert twin(images).equal(net(images))
        kept = copy.deepcopy(twin.state_dict())
        net(images)
        assert all(tensor.equal(kept[name]) for name, tensor in twin.state_dict().items())


def test_it_can_be_built_without_memory(nets: NetConfig) -> None:
    with torch.device("meta"):
        shapes = [{name: t.shape for name, t in net.state_dict().items()} for net in readers(nets)]
    assert shapes == [{name: t.shape for name, t in net.state_dict().items()} for net in readers(nets)]


def train(net: nn.Module, steps: int) -> None:
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for step in range(steps):
        images = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(step))
        (net(images).mean() - net(1 - images).square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_its_state_goes_on_where_it_stopped(nets: NetConfig) -> None:
    for position, net in enumerate(readers(nets)):
        train(net, 2)
        again, forgetful = readers(nets)[position], readers(nets)[position]
        again.load_state_dict(net.state_dict())
        saved = net.state_dict()
        vectors = [name for name in saved if name.endswith(("._u", "._v"))]
        assert vectors
        forgetful.load_state_dict({name: saved[name] for name in saved if name not in vectors}, strict=False)
        for each in (net, again, forgetful):
            train(each, 2)
        assert all(tensor.equal(net.state_dict()[name]) for name, tensor in again.state_dict().items())
        assert any(not tensor.equal(net.state_dict()[name]) for name, tensor in forgetful.state_dict().items())


@pytest.mark.parametrize("name", ["conv", "resnet"])
def test_a_gan_resumes_bit_for_bit(
    make_run: Callable[..., Run],
    finish: Callable[..., list[Tick]],
    newest: Callable[[Run], Checkpoint],
    differing: Callable[..., list[str]],
    name: str,
) -> None:
    keys = [f"nets.name={name}", "nets.width=2", "nets.latent=3", "nets.spectral_norm=true", "batch=4"]
    keys += ["duration_samples=24", "report.every_samples=4", "checkpoint.every_samples=8"]
    straight, stopped = make_run("gan", *keys), make_run("gan", *keys)
    finish(straight)
    finish(stopped, stop_after=3)
    torch.manual_seed(1)
    finish(Run.open(stopped.path), resume=newest(stopped))
    assert any(name.endswith("._u") for name in newest(stopped).tensors())
    assert differing(newest(stopped).tensors(), newest(straight).tensors()) == []
