"""Every net declares where the latent lies: exactly what a larger latent makes larger, along exactly that axis."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest

from shoal.nets import NETS, parse_net
from shoal.nets.family import ImageShape, Network

L, MORE = 5, 3

KEYS: dict[str, dict[str, list[Any]]] = {
    "conv": {
        "width": [1],
        "norm": ["group", "batch", "none"],
        "hidden": [0, 6],
        "upsampling": ["transposed", "nearest"],
        "init_std": [None, 0.02],
        "spectral_norm": [False, True],
    },
    "mlp": {"hidden": [(), (6,), (6, 5)], "spectral_norm": [False, True]},
    "resnet": {
        "width": [1],
        "norm": ["group", "batch", "none"],
        "blocks": [1, 2],
        "spectral_norm": [False, True],
    },
}


def settings() -> Iterator[Any]:
    for name, keys in KEYS.items():
        for values in product(*keys.values()):
            chosen = dict(zip(keys, values, strict=True))
            yield pytest.param({"name": name, **chosen}, id=f"{name}-" + "-".join(map(str, values)))


def test_every_family_is_among_them() -> None:
    assert KEYS.keys() == NETS.keys()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)], ids=str)
@pytest.mark.parametrize("values", list(settings()))
def test_what_a_larger_latent_makes_larger_is_what_is_declared(values: dict[str, Any], shape: ImageShape) -> None:
    nets = parse_net(values)
    kinds: dict[str, tuple[Callable[[int], Network], int]] = {
        "encoder": (lambda latent: nets.encoder(shape, latent), 1),
        "encoder of mean and variance": (lambda latent: nets.encoder(shape, 2 * latent), 2),
        "decoder": (lambda latent: nets.decoder(shape, latent), 1),
        "conditional decoder": (lambda latent: nets.decoder(shape, latent, 4), 1),
    }
    if nets.name != "mlp":
        kinds["map encoder"] = (lambda latent: nets.map_encoder(shape, latent), 1)
        kinds["map decoder"] = (lambda latent: nets.map_decoder(shape, latent), 1)
    for kind, (build, parts) in kinds.items():
        small, large = build(L), build(L + MORE)
        assert small.latent_axes, kind
        assert small.latent_axes == large.latent_axes
        before = {name: list(tensor.shape) for name, tensor in small.state_dict().items()}
        after = {name: list(tensor.shape) for name, tensor in large.state_dict().items()}
        assert before.keys() == after.keys()
        for name, axis in small.latent_axes.items():
            before[name][axis] += parts * MORE
        assert before == after, kind
