"""Another latent size for a trained model: growth changes nothing, shrinking loses the least there is to lose."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from shoal.config import RunConfig, build_config, merge
from shoal.engine import Engine
from shoal.errors import ConfigError, RunError
from shoal.nets.family import Network
from shoal.noise import Noise
from shoal.objectives import Batch, Objective, ObjectiveConfig, Phase, Scalars, register
from shoal.objectives.vae import kl_to_standard_normal
from shoal.pixels import to_float
from shoal.state import State, build_objective
from shoal.transplant import transplant
from shoal.transplant.subspace import nearest_to_axes, whitened
from shoal.world import World

SHAPE = (1, 28, 28)
CLASSES = 4
BATCH = 32
OLD, NEW = 6, 15

FAMILIES: dict[str, dict[str, Any]] = {
    "autoencoder": {"objective": {"name": "autoencoder"}},
    "sigmoid": {"objective": {"name": "autoencoder", "code": "sigmoid"}},
    "denoising": {"objective": {"name": "denoising_autoencoder"}},
    "vae": {"objective": {"name": "vae"}},
    "bernoulli-vae": {"objective": {"name": "vae", "likelihood": "bernoulli", "beta": 2.0}},
    "wae": {"objective": {"name": "wae"}},
    "vq_vae": {"objective": {"name": "vq_vae", "num_codes": 16}},
    "gan": {"objective": {"name": "gan", "r1": 1.0}, "data": {"range": "symmetric"}},
    "cgan": {"objective": {"name": "gan", "conditional": True}, "data": {"range": "symmetric"}},
}
NETS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "hidden": [24, 12]},
    "conv": {"name": "conv", "width": 4},
    "conv-hidden": {"name": "conv", "width": 4, "norm": "none", "hidden": 20},
    "resnet": {"name": "resnet", "width": 2},
}
EVERY = [(family, net) for family in FAMILIES for net in NETS if (family, net) != ("vq_vae", "mlp")]


def config(family: str, net: str = "mlp", latent: int = OLD, **more: Any) -> RunConfig:
    common = {"batch": BATCH, "duration_samples": 10_000, "ema": {"half_life_samples": 200}, "optim": {"lr": 2e-3}}
    values = merge(merge(common, FAMILIES[family]), {"nets": {**NETS[net], "latent": latent}})
    return build_config(merge(values, more))


def painted(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return uint8 images of a blob somewhere, wide or narrow, on grey noise, and the quadrant that it is in."""
    generator = torch.Generator().manual_seed(seed)
    row, column, width, light = torch.rand(4, num, 1, 1, generator=generator)
    place = torch.arange(28.0)
    squares = (place[:, None] - 28 * row) ** 2 + (place - 28 * column) ** 2
    images = 200 * light * torch.exp(-squares / (8 + 60 * width)) + 40 * torch.rand(num, 28, 28, generator=generator)
    return images.to(torch.uint8)[:, None], ((row > 0.5) * 2 + (column > 0.5)).flatten().long()


IMAGES, LABELS = painted(256, 0)


def batch(settings: RunConfig, index: int) -> tuple[Batch, Noise]:
    rows = torch.arange(index * BATCH, (index + 1) * BATCH) % len(IMAGES)
    images = to_float(IMAGES[rows], settings.data.range)
    return Batch(images=images, labels=LABELS[rows], index=index), Noise(0, index, BATCH, slice(0, BATCH))


class Model:
    """A run's objective and state, without the run."""

    def __init__(self, settings: RunConfig, tensors: Mapping[str, Tensor] | None = None) -> None:
        self.config = settings
        self.objective = build_objective(settings, SHAPE, CLASSES)
        self.state = State.fresh(self.objective, settings)
        if tensors is not None:
            self.state.load_tensors(tensors)

    def train(self, steps: int) -> "Model":
        engine = Engine(self.objective, self.state, self.config, World.local("cpu"))
        for _ in range(steps):
            engine.step(*batch(self.config, self.state.batches))
        return self

    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.state.tensors().items()}

    def resized(self, latent: int, key: str = "key", tensors: Mapping[str, Tensor] | None = None) -> "Model":
        nets = self.config.nets.model_copy(update={"latent": latent})
        new = self.config.model_copy(update={"nets": nets})
        given = self.tensors() if tensors is None else tensors
        return Model(new, transplant(given, self.config, new, SHAPE, CLASSES, IMAGES, key))

    def view(self, group: str = "nets", *, training: bool = False) -> Any:
        """Return the objective on copies of the plain or the averaged networks."""
        nets = {**self.state.nets, **(self.state.ema if group == "ema" else {})}
        return self.objective.using({name: copy.deepcopy(net).train(training) for name, net in nets.items()})

    def losses(self, *, training: bool = False) -> dict[str, Tensor]:
        told: dict[str, Tensor] = {}
        for group in ("nets", "ema"):
            for phase in self.objective.phases:
                loss, scalars = self.view(group, training=training).loss(phase.name, *batch(self.config, 7))
                told |= {f"{group}/{phase.name}/{name}": value.detach() for name, value in scalars.items()}
                told[f"{group}/{phase.name}"] = loss.detach()
        return told


_trained: dict[tuple[Any, ...], Model] = {}


def trained(family: str, net: str = "mlp", latent: int = OLD, steps: int = 4, **more: Any) -> Model:
    """Return a model trained for so many steps; tests only read it."""
    key = (family, net, latent, steps, str(more))
    if key not in _trained:
        _trained[key] = Model(config(family, net, latent, **more)).train(steps)
    return _trained[key]


def not_equal(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> set[str]:
    assert one.keys() == two.keys()
    return {name for name in one if not torch.equal(one[name], two[name])}


ULPS = 4 * torch.finfo(torch.float32).eps
# A sum over dimensions, which adds its zeros in an order that depends on how many there are.
SUMMED = {"elbo", "elbo/loss/kl", "elbo/loss/elbo"}
# What is about the size itself: a discrepancy of distributions over another space, a mean of which the new dimensions
# enlarge the number and not the sum.
ABOUT_SIZE = {
    "wae": {"reconstruction", "reconstruction/loss/mmd"},
    "vq_vae": {"reconstruction", "reconstruction/loss/commitment"},
}


def assert_same_losses(one: Model, two: Model, *, training: bool = False) -> None:
    was, now = one.losses(training=training), two.losses(training=training)
    differing = not_equal(was, now)
    about_size = ABOUT_SIZE.get(one.config.objective.name, set())
    sizes = one.config.nets.latent, two.config.nets.latent
    for name in sorted(differing):
        measure = name.partition("/")[2]
        if measure in SUMMED:
            torch.testing.assert_close(now[name], was[name], rtol=ULPS, atol=0.0)
        elif measure.endswith("commitment"):
            torch.testing.assert_close(now[name] * sizes[1], was[name] * sizes[0], rtol=ULPS, atol=0.0)
        else:
            assert measure in about_size


@pytest.mark.parametrize(("family", "net"), EVERY)
def test_growth_changes_no_loss(family: str, net: str) -> None:
    before = trained(family, net)
    after = before.resized(NEW)
    assert after.config.nets.latent == NEW
    for training in (False, True):
        assert_same_losses(before, after, training=training)


@pytest.mark.parametrize("sizes", [(1, 2), (2, 16), (4, 8), (16, 64), (17, 33), (32, 33)], ids=str)
@pytest.mark.parametrize("family", ["autoencoder", "vae", "gan"])
def test_growth_is_exact_between_any_sizes(family: str, sizes: tuple[int, int]) -> None:
    before = trained(family, "conv-hidden", sizes[0])
    after = before.resized(sizes[1])
    if sizes[0] > 1:
        assert_same_losses(before, after)
        return
    # A product with one column is computed otherwise than one with several, and rounded otherwise.
    was, now = before.losses(), after.losses()
    for name in was:
        torch.testing.assert_close(now[name], was[name], rtol=2e-6, atol=0.0)


@pytest.mark.parametrize("family", ["autoencoder", "sigmoid", "vae", "wae"])
def test_growth_leaves_a_spectral_norm_as_it_is(family: str) -> None:
    before = trained(family, nets={"spectral_norm": True})
    after = before.resized(NEW)
    for training in (False, True):
        was, now = before.losses(training=training), after.losses(training=training)
        name = "nets/elbo/loss/reconstruction" if family == "vae" else "nets/reconstruction/loss/reconstruction"
        torch.testing.assert_close(now[name], was[name], rtol=2e-6, atol=0.0)


@pytest.mark.parametrize(("family", "net"), EVERY)
def test_new_dimensions_learn_from_the_first_steps(family: str, net: str) -> None:
    grown = trained(family, net).resized(NEW)
    before = grown.tensors()
    after = grown.train(3).tensors()
    for group in ("nets", "ema"):
        for name, axis in grown.objective.latent_axes().items():
            old, new = (
                torch.unflatten(tensors[f"{group}/{name}"], axis.axis, (axis.parts, NEW)).narrow(
                    axis.axis + 1, OLD, NEW - OLD
                )
                for tensors in (before, after)
            )
            moved = (new - old).abs().transpose(0, axis.axis + 1).flatten(1).amax(1)
            assert moved.min() > 0, name


def test_optimizers_moments_grow_by_zeros() -> None:
    for family, name in (("vae", "adam"), ("gan", "sgd")):
        before = trained(family, optim={"name": name, "betas": [0.9, 0.99]})
        was, now = before.tensors(), before.resized(NEW).tensors()
        axes = before.objective.latent_axes()
        assert was.keys() == now.keys()
        moments = [key for key in was if key.startswith("optim/")]
        assert {key.rpartition("/")[2] for key in moments} == (
            {"momentum_buffer"} if name == "sgd" else {"step", "exp_avg", "exp_avg_sq"}
        )
        resized = 0
        for key in moments:
            axis = axes.get(key.split("/")[2])
            if axis is None or was[key].ndim == 0:
                assert torch.equal(was[key], now[key])
                continue
            resized += 1
            parts = torch.unflatten(now[key], axis.axis, (axis.parts, NEW))
            kept, new = torch.split(parts, [OLD, NEW - OLD], axis.axis + 1)
            assert torch.equal(kept.flatten(axis.axis, axis.axis + 1), was[key])
            assert not new.any()
            assert was[key].any()
        assert resized


def test_new_dimensions_of_a_posterior_are_the_prior() -> None:
    objective = trained("vae", "conv").resized(NEW).view()
    mean, log_variance = objective.posterior(to_float(IMAGES, "unit"))
    assert not mean[:, OLD:].any()
    assert not log_variance[:, OLD:].any()
    assert mean[:, :OLD].any()


def test_new_dimensions_of_a_wasserstein_autoencoder_come_nearer_to_the_prior() -> None:
    before = trained("wae", "mlp", 4, 60)
    after = before.resized(6)
    codes = after.view("ema").encode(to_float(IMAGES, "unit")).detach().double()
    assert codes[:, 4:].mean(0).abs().max() < 1e-4
    assert codes[:, 4:].std(0).min() > 0.25
    assert codes[:, 4:].std(0).max() < 1.01
    name = "ema/reconstruction/loss/mmd"
    assert after.losses()[name] < before.losses()[name]


def normals(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_directions_of_inputs_are_whitened() -> None:
    inputs = normals(500, 40) @ normals(40, 40, seed=1) + 3
    taken = normals(5, 40, seed=2)
    found = whitened(normals(7, 40, seed=3), taken, inputs)
    values = inputs @ torch.cat([taken, found]).T
    torch.testing.assert_close(torch.cov(values.T)[5:, 5:], torch.eye(7, dtype=torch.float64), rtol=0.0, atol=0.1)
    assert (torch.corrcoef(values.T) - torch.eye(12))[5:].abs().max() < 0.1


def test_directions_in_which_nothing_varies_are_not_blown_up() -> None:
    inputs = normals(500, 3) @ normals(3, 40, seed=1)
    found = whitened(normals(7, 40, seed=3), normals(5, 40, seed=2), inputs)
    assert found.isfinite().all()
    assert (inputs @ found.T).std(0).max() < 0.3


@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 1000))
def test_a_basis_of_a_space_depends_on_the_space_alone(size: int, more: int, seed: int) -> None:
    basis = torch.linalg.qr(normals(size + more, size, seed=seed)).Q
    other = basis @ torch.linalg.qr(normals(size, size, seed=seed + 1)).Q
    P = nearest_to_axes(basis)
    torch.testing.assert_close(P @ P.T, torch.eye(size, dtype=torch.float64))
    torch.testing.assert_close(P.T @ P, basis @ basis.T)
    torch.testing.assert_close(nearest_to_axes(other), P)


def test_a_basis_of_a_space_of_axes_is_these_axes() -> None:
    axes = torch.eye(9, dtype=torch.float64)[[1, 4, 5, 8]]
    torch.testing.assert_close(nearest_to_axes(axes.T @ torch.linalg.qr(normals(4, 4)).Q), axes)


def first_layer(objective: Objective) -> nn.Linear | nn.Conv2d:
    decoder: Any = objective.nets["generator" if "generator" in objective.nets else "decoder"]
    layer = (decoder.net if hasattr(decoder, "net") else decoder)[0]
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return layer


def first_outputs(objective: Any, images: Tensor) -> Tensor:
    """Return what the decoder's first layer says of the codes of images, [rows, units] float64."""
    seen: list[Tensor] = []
    hook = first_layer(objective).register_forward_hook(lambda _, given, output: seen.append(output))
    with torch.no_grad():
        objective.decode(objective.encode(images))
    hook.remove()
    return seen[0].double().movedim(1, -1).flatten(0, -2)


@pytest.mark.parametrize(
    ("family", "net", "spectral_norm"),
    [
        ("autoencoder", "mlp", False),
        ("autoencoder", "conv", False),
        ("autoencoder", "mlp", True),
        ("denoising", "mlp", False),
        ("wae", "mlp", False),
    ],
)
def test_a_linear_code_shrinks_to_the_best_projection(family: str, net: str, spectral_norm: bool) -> None:
    # Independently: whatever rank 8 leaves of the first layer's outputs, it is no nearer to them than their own first 8
    # principal components, which no code need be inverted for.
    more = {"optim": {"lr": 5e-3}, "ema": {"half_life_samples": 0}, "nets": {"spectral_norm": spectral_norm}}
    before = trained(family, net, 16, 60, **more)
    objective = before.view()
    x = to_float(IMAGES, "unit")
    outputs = first_outputs(objective, x)
    mean = outputs.mean(0)
    _, axes = torch.linalg.eigh((outputs - mean).T @ (outputs - mean))
    best = mean + (outputs - mean) @ axes[:, -8:] @ axes[:, -8:].T

    def error(some: Any) -> float:
        with torch.no_grad():
            return float((some.decode(some.encode(x)) - x).square().mean())

    hook = first_layer(objective).register_forward_hook(lambda _, given, output: best.to(output.dtype))
    error_of_best = error(objective)
    hook.remove()
    after = before.resized(8)
    shrunk = after.view()
    torch.testing.assert_close(first_outputs(shrunk, x), best, rtol=0.0, atol=1e-4)
    assert error(shrunk) <= 1.001 * error_of_best
    # And what a cut would have given, for the test to tell the two apart.
    cut = before.view()
    with torch.no_grad():
        first_layer(cut).weight[:, 8:] = 0
    assert error(cut) - error(objective) > 1.5 * (error_of_best - error(objective))


def test_shrinking_a_squashed_code_keeps_the_most_used_and_the_mean_of_the_rest() -> None:
    before = trained("sigmoid", "mlp", 8, 20)
    objective = before.view("ema")
    x = to_float(IMAGES, "unit")
    codes = objective.encode(x).double()
    use = codes.var(0) * first_layer(objective).weight.double().square().sum(0)
    kept = sorted(use.argsort(descending=True)[:3].tolist())
    after = before.resized(3)
    shrunk = after.view("ema")
    assert torch.equal(shrunk.encode(x), objective.encode(x)[:, kept])
    assert torch.equal(first_layer(shrunk).weight, first_layer(objective).weight[:, kept])
    torch.testing.assert_close(first_outputs(shrunk, x).mean(0), first_outputs(objective, x).mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("net", ["mlp", "resnet"])
def test_shrinking_a_posterior_keeps_the_dimensions_of_largest_divergence(net: str) -> None:
    # 1 says much by its mean; 4 by its variance, with a mean that moves less than those of others.
    model = Model(config("vae", net, 6, ema={"half_life_samples": 0})).train(2)
    last: Any = model.state.nets["encoder"][-1]  # type: ignore[index]  # a Sequential
    with torch.no_grad():
        for dimension, much in enumerate([0.01, 60.0, 6.0, 0.0, 0.02, 0.03]):
            last.weight[dimension] *= much / last.weight[dimension].norm()
        last.bias[:6] = torch.tensor([0.1, 0.0, -0.2, 0.05, 0.0, 0.3])
        last.weight[6:] *= 0.01
        last.bias[6:] = torch.tensor([0.0, 0.0, 0.0, 0.0, -20.0, 0.0])
    before = model.view()
    after = model.resized(2).view()
    x = to_float(IMAGES, "unit")
    for was, now in zip(before.posterior(x), after.posterior(x), strict=True):
        torch.testing.assert_close(now, was[:, [1, 4]], rtol=1e-6, atol=1e-6)
    kl = kl_to_standard_normal(*(values.reshape(-1, 1) for values in before.posterior(x))).view(-1, 6).mean(0)
    assert sorted(kl.argsort()[-2:].tolist()) == [1, 4]
    torch.testing.assert_close(first_outputs(after, x).mean(0), first_outputs(before, x).mean(0), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize(("family", "net"), [("gan", "mlp"), ("gan", "resnet"), ("cgan", "mlp"), ("cgan", "conv")])
def test_a_generator_shrinks_to_the_best_approximation_of_its_first_layer(family: str, net: str) -> None:
    # z ~ N(0, I), so the first layer's outputs have covariance W W^T; the best of rank 4 are its largest 4 eigenpairs.
    before = trained(family, net, 12)
    after = before.resized(4)
    for group, close in (("ema", 1e-6), ("nets", 1e-3)):
        W, W_new = (first_layer(model.view(group)).weight.detach().double() for model in (before, after))
        values, vectors = torch.linalg.eigh(W @ W.T)
        best = vectors[:, -4:] * values[-4:] @ vectors[:, -4:].T
        # One map for both, found by the average; the plain weights are close to it.
        torch.testing.assert_close(W_new @ W_new.T, best, rtol=0.0, atol=close * float(values[-1]))
    was, now = before.tensors(), after.tensors()
    for name in was:
        if name.endswith(".bias"):
            torch.testing.assert_close(now[name], was[name], rtol=0.0, atol=0.0)


@pytest.mark.parametrize(("family", "net"), EVERY)
def test_growing_and_shrinking_again_gives_the_model_back(family: str, net: str) -> None:
    before = trained(family, net)
    back = before.resized(NEW).resized(OLD)
    assert back.config == before.config
    was, now = before.losses(), back.losses()
    for name in was:
        torch.testing.assert_close(now[name], was[name], rtol=1e-5, atol=1e-6)
    tensors, again = before.tensors(), back.tensors()
    for name in tensors:  # what no code uses yet, nothing determines that well
        torch.testing.assert_close(again[name], tensors[name], rtol=1e-4, atol=1e-4)


def turned(model: Model) -> dict[str, Tensor]:
    """Return a model's networks with the latent rotated: the same function, in which no axis means anything."""
    size = model.config.nets.latent
    drawn = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    Q = torch.linalg.qr(drawn).Q
    axes = model.objective.latent_axes()
    tensors = {name: value for name, value in model.tensors().items() if not name.startswith("optim/")}
    for name, value in tensors.items():
        axis = axes.get(name.partition("/")[2])
        if axis is not None:
            rotated = torch.tensordot(Q, value.double(), dims=([1], [axis.axis])).movedim(0, axis.axis)
            tensors[name] = rotated.to(value.dtype)
    return tensors


@pytest.mark.parametrize(
    ("family", "net"), [("autoencoder", "mlp"), ("wae", "conv"), ("vq_vae", "conv"), ("gan", "mlp")]
)
def test_what_lies_in_a_subspace_is_found_however_it_is_turned(family: str, net: str) -> None:
    before = trained(family, net)
    grown = before.resized(NEW)
    back = grown.resized(OLD, tensors=turned(grown))
    was, now = before.view("ema"), back.view("ema")
    if family == "gan":
        W, W_new = (first_layer(objective).weight.detach().double() for objective in (was, now))
        torch.testing.assert_close(W_new @ W_new.T, W @ W.T, rtol=0.0, atol=1e-6)
        return
    x = to_float(IMAGES, "unit")
    with torch.no_grad():
        torch.testing.assert_close(now.decode(now.encode(x)), was.decode(was.encode(x)), rtol=0.0, atol=1e-5)
    if family == "vq_vae":
        assert torch.equal(now.code_indices(x), was.code_indices(x))


def test_a_gradient_becomes_the_gradient_of_the_shrunk_model() -> None:
    # Where nothing is lost, both are the same function, and what autograd says of one is what the moments of the other
    # become.
    def gradients(model: Model) -> dict[str, Tensor]:
        model.objective.loss("reconstruction", *batch(model.config, 3))[0].backward()  # type: ignore[no-untyped-call]
        return {
            f"optim/reconstruction/{net}.{name}/exp_avg": weight.grad.clone()
            for net, module in model.objective.nets.items()
            for name, weight in module.named_parameters()
            if weight.grad is not None
        }

    small = trained("autoencoder", "mlp", steps=20, ema={"half_life_samples": 0}).resized(NEW)
    grown = Model(small.config, turned(small))
    given = {name: value for name, value in grown.tensors().items() if name.startswith("nets/")} | gradients(grown)
    shrunk = grown.resized(OLD, tensors=given)
    expected = gradients(shrunk)
    carried = {name: value for name, value in shrunk.tensors().items() if name.startswith("optim/")}
    assert carried.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(carried[name], value, rtol=1e-3, atol=1e-5 * float(value.abs().max()))


def test_squares_of_gradients_stay_between_those_that_they_are_made_of() -> None:
    # Rows of an orthonormal basis have squares that add up to one.
    model = trained("cgan", "mlp", 12)
    name = "optim/generator/generator.0.weight/exp_avg_sq"
    was, now = (some.tensors()[name] for some in (model, model.resized(5)))
    assert was.shape[1] == 12
    assert now.shape[1] == 5
    assert (now.amin(1) >= was.amin(1) * (1 - 1e-6)).all()
    assert (now.amax(1) <= was.amax(1) * (1 + 1e-6)).all()


def test_a_shrunk_codebook_is_chosen_from_much_the_same() -> None:
    before = trained("vq_vae", "conv", 12, 80, optim={"lr": 5e-3})
    was, now = before.view(), before.resized(4).view()
    x = to_float(IMAGES, "unit")
    assert len(was.code_indices(x).unique()) > 4
    assert (was.code_indices(x) == now.code_indices(x)).float().mean() > 0.9
    for book in (was.nets["codebook"], now.nets["codebook"]):
        used = book.counts > 1e-3
        torch.testing.assert_close(
            book.sums[used] / book.counts[used][:, None], book.vectors[used], rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("size", [2, NEW])
@pytest.mark.parametrize("family", ["autoencoder", "sigmoid", "vae", "vq_vae", "cgan"])
def test_weights_and_averages_go_through_one_map(family: str, size: int) -> None:
    # So half way between them before is half way between them after.
    model = trained(family, "conv", steps=6)
    given = model.tensors()
    half = dict(given)
    between = [name for name in given if name.startswith("ema/") and given[name].is_floating_point()]
    for name in between:
        plain = name.replace("ema/", "nets/", 1)
        half[plain] = (given[name] + given[plain]) / 2
    one, two = (model.resized(size, tensors=tensors).tensors() for tensors in (given, half))
    for name in between:
        plain = name.replace("ema/", "nets/", 1)
        torch.testing.assert_close(two[plain], (one[name] + one[plain]) / 2, rtol=1e-5, atol=1e-6)
        assert torch.equal(two[name], one[name])


@pytest.mark.parametrize(
    ("family", "net", "optimizer"),
    [
        *((family, net, "adam") for family, net in EVERY if net != "resnet"),
        ("vae", "mlp", "sgd"),
        ("gan", "mlp", "sgd"),
    ],
)
def test_a_shrunk_model_trains_on(family: str, net: str, optimizer: str) -> None:
    before = trained(family, net, optim={"name": optimizer}) if optimizer != "adam" else trained(family, net)
    after = before.resized(3)
    moments = {name: value for name, value in after.tensors().items() if name.startswith("optim/")}
    assert moments.keys() == {name for name in before.tensors() if name.startswith("optim/")}
    for name, value in moments.items():
        assert name.endswith("step") or value.any()
        assert not name.endswith("_sq") or value.min() >= 0
    was = after.tensors()
    after.train(2)
    now = after.tensors()
    assert all(torch.isfinite(value).all() for value in now.values())
    assert {f"nets/{name}" for name in after.objective.latent_axes()} <= not_equal(was, now)


def test_it_is_a_function_of_its_arguments_alone() -> None:
    model = trained("autoencoder", "conv")
    given = model.tensors()
    torch.manual_seed(1)
    one = model.resized(NEW, "a", given).tensors()
    torch.manual_seed(2)
    two = model.resized(NEW, "a", given).tensors()
    other = model.resized(NEW, "b", given).tensors()
    assert not_equal(given, model.tensors()) == set()
    assert not_equal(one, two) == set()
    assert not_equal(one, other) == {f"{group}/encoder.{last(model)}.weight" for group in ("nets", "ema")}
    shrunk = [model.resized(2, key, given).tensors() for key in "ab"]
    assert not_equal(*shrunk) == set()


def last(model: Model) -> int:
    return len(model.state.nets["encoder"]) - 1  # type: ignore[arg-type]  # a Sequential


def test_the_same_size_gives_plain_copies() -> None:
    model = trained("vae")
    given = model.tensors()
    new = model.config.model_copy(update={"optim": model.config.optim.model_copy(update={"lr": 0.5})})
    copies = transplant(given, model.config, new, SHAPE, CLASSES, IMAGES, "key")
    assert not_equal(given, copies) == set()
    assert all(copies[name].data_ptr() != given[name].data_ptr() for name in given if given[name].numel())


@pytest.mark.parametrize("latent", [OLD, NEW])
@pytest.mark.parametrize(
    ("nets", "tensor"),
    [({"hidden": [24, 16]}, r"encoder.3.weight is \[12, 24\]"), ({"hidden": [24]}, r"encoder.3.weight is \[12, 24\]")],
)
def test_anything_but_the_latent_is_refused(latent: int, nets: dict[str, Any], tensor: str) -> None:
    model = trained("autoencoder")
    new = config("autoencoder", latent=latent, nets=nets)
    with pytest.raises(ConfigError, match=f"{tensor}.*would be .*only nets.latent .* can change in a trained model"):
        transplant(model.tensors(), model.config, new, SHAPE, CLASSES, IMAGES, "key")


def test_another_codebook_is_refused() -> None:
    model = trained("vq_vae", "conv")
    new = config("vq_vae", "conv", NEW, objective={"num_codes": 20})
    with pytest.raises(ConfigError, match=r"codebook.vectors is \[16, 6\] .* would be \[20, 15\]"):
        transplant(model.tensors(), model.config, new, SHAPE, CLASSES, IMAGES, "key")


def test_a_spectral_norm_that_comes_or_goes_is_refused() -> None:
    model = trained("autoencoder", "conv")
    new = config("autoencoder", "conv", nets={"spectral_norm": True})
    with pytest.raises(ConfigError, match=r"encoder\.0\.weight is \[4, 1, 4, 4\] .* would be absent"):
        transplant(model.tensors(), model.config, new, SHAPE, CLASSES, IMAGES, "key")


def test_tensors_of_another_configuration_are_refused() -> None:
    model = trained("autoencoder")
    old = config("autoencoder", nets={"hidden": [24, 16]})
    with pytest.raises(ConfigError, match=r"encoder\.3\.weight is \[12, 24\] and .* makes it \[16, 24\]"):
        transplant(model.tensors(), old, old, SHAPE, CLASSES, IMAGES, "key")


def test_a_model_that_diverged_is_not_measured() -> None:
    model = trained("vae")
    tensors = model.tensors()
    tensors["ema/encoder.1.weight"][0, 0] = torch.nan
    with pytest.raises(RunError, match="not all finite"):
        model.resized(2, tensors=tensors)


class PlainConfig(ObjectiveConfig):
    """Settings of the objectives below."""

    name: Literal["plain"] = "plain"


class Plain(Objective):
    """An autoencoder of somebody else, which says of its latent only where it is: in a transposed convolution, too."""

    Config = PlainConfig
    phases: tuple[Phase, ...] = (Phase(name="all", trains=("writer", "reader")),)
    inference: tuple[str, ...] = ("writer", "reader")
    latent_nets: ClassVar = {"writer": 1, "reader": 1}

    def __init__(self, config: ObjectiveConfig, nets: Any, shape: Any, pixel_range: Any, num_classes: int = 0) -> None:
        self.nets = {
            "writer": Network([nn.Flatten(), nn.Linear(784, nets.latent)], {"1.weight": 0, "1.bias": 0}),
            "reader": Network(
                [nn.Unflatten(1, (nets.latent, 1, 1)), nn.ConvTranspose2d(nets.latent, 3, 7, 7), nn.ReLU()],
                {"1.weight": 0},
            ),
        }

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Scalars]:
        return (self.decode(self.encode(batch.images)) - batch.images[:, :, :7, :7]).square().mean(), {}

    def encode(self, x: Tensor) -> Tensor:
        code: Tensor = self.nets["writer"](x).tanh()
        return code

    def decode(self, z: Tensor) -> Tensor:
        image: Tensor = self.nets["reader"](z)
        return image


class Undeclared(Plain):
    """The same, without a word about its latent."""

    latent_nets: ClassVar = {}


class OnlyReads(Plain):
    """The same, as a generator: nobody can ask it for codes."""

    phases = (Phase(name="all", trains=("reader",)),)
    inference = ("reader",)
    latent_nets: ClassVar = {"reader": 1}
    encode = None  # type: ignore[assignment]  # so that it is no longer among those that reconstruct

    def __init__(self, config: ObjectiveConfig, nets: Any, shape: Any, pixel_range: Any, num_classes: int = 0) -> None:
        super().__init__(config, nets, shape, pixel_range, num_classes)
        self.nets = {"reader": self.nets["reader"]}
        self._latent = nets.latent

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Scalars]:
        return self.decode(noise.normal("z", self._latent)).square().mean(), {}


def plug_in(objective: type[Objective], steps: int = 3) -> Model:
    register(objective)
    values = {"objective": {"name": "plain"}, "nets": {"name": "mlp", "latent": OLD}, "batch": BATCH}
    return Model(build_config(values)).train(steps)


def test_a_plug_in_that_declares_its_latent_changes_it() -> None:
    model = plug_in(Plain)
    x = to_float(IMAGES, "unit")
    was, wider = model.view(), model.resized(NEW).view()
    codes = was.encode(x)
    assert torch.equal(wider.encode(x)[:, :OLD], codes)
    assert wider.encode(x)[:, OLD:].std(0).min() > 0
    torch.testing.assert_close(wider.decode(wider.encode(x)), was.decode(codes), rtol=0.0, atol=1e-6)
    weight = was.nets["reader"][1].weight
    assert weight.shape == (OLD, 3, 7, 7)
    kept = sorted((codes.var(0) * weight.square().sum((1, 2, 3))).argsort()[-2:].tolist())
    dropped = [dimension for dimension in range(OLD) if dimension not in kept]
    narrower = model.resized(2).view()
    assert torch.equal(narrower.encode(x), codes[:, kept])
    assert torch.equal(narrower.nets["reader"][1].weight, weight[kept])
    # The mean over the kernel: a bias is the same at every place that one input is spread over.
    folded = torch.einsum("i,iokl->okl", codes.mean(0)[dropped], weight[dropped]).mean((1, 2))
    torch.testing.assert_close(narrower.nets["reader"][1].bias, was.nets["reader"][1].bias + folded)


def test_a_plug_in_without_an_encoder_keeps_what_is_read_most() -> None:
    model = plug_in(OnlyReads)
    with torch.no_grad():
        model.state.nets["reader"][1].weight[[1, 3]] *= 10  # type: ignore[index]  # a Sequential
    was, now = model.view(), model.resized(2).view()
    assert torch.equal(now.nets["reader"][1].weight, was.nets["reader"][1].weight[[1, 3]])
    assert torch.equal(now.nets["reader"][1].bias, was.nets["reader"][1].bias)


def test_a_plug_in_that_declares_nothing_is_refused() -> None:
    model = plug_in(Undeclared)
    with pytest.raises(
        ConfigError, match=r"writer.1.weight is \[6, 784\] .* where the objective declares it \(latent_nets\)"
    ):
        model.resized(NEW)
