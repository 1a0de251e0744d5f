import math
from collections.abc import Mapping
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, MultivariateNormal, Normal, kl_divergence

from shoal.config import RunConfig, build_config
from shoal.engine import Engine
from shoal.errors import ConfigError
from shoal.noise import Noise
from shoal.objectives import Batch, Generates, HasLikelihood, Reconstructs, Vae, build
from shoal.objectives.likelihood import (
    LEAST_LOG_SIGMA,
    PACE,
    GaussianDecoder,
    bernoulli_log_prob,
    gaussian_log_prob,
)
from shoal.objectives.vae import LARGEST_LOG_VARIANCE, kl_to_standard_normal
from shoal.pixels import PixelRange, to_unit
from shoal.state import State
from shoal.world import World

SHAPE = (2, 4, 3)
PIXELS = 24
NUM = 7
LATENT = 5
KINDS: list[tuple[str, PixelRange]] = [("gaussian", "unit"), ("gaussian", "symmetric"), ("bernoulli", "unit")]


def configured(latent: int = LATENT, hidden: tuple[int, ...] = (8,), **keys: object) -> RunConfig:
    return build_config(
        {
            "objective": {"name": "vae", **keys},
            "nets": {"name": "mlp", "latent": latent, "hidden": hidden, "activation": "gelu"},
            "optim": {"lr": 1e-2},
            "batch": NUM,
        }
    )


def built(
    config: RunConfig, pixel_range: PixelRange = "unit", shape: tuple[int, int, int] = SHAPE, spread: float = 2.0
) -> Vae:
    torch.manual_seed(0)
    objective = build(config.objective, config.nets, shape, pixel_range)
    assert isinstance(objective, Vae)
    with torch.no_grad():
        for weight in objective.nets["encoder"].parameters():
            weight.mul_(spread)  # or every posterior is nearly the prior
    return objective


def images(pixel_range: PixelRange, num: int = NUM) -> Tensor:
    x = torch.rand(num, *SHAPE, generator=torch.Generator().manual_seed(1))
    return x if pixel_range == "unit" else 2 * x - 1


def noise(num: int = NUM, rows: slice | None = None) -> Noise:
    return Noise(3, 5, num, rows or slice(0, num))


def likelihood(vae: Vae, kind: str, pixel_range: PixelRange, z: Tensor) -> Normal | Bernoulli:
    """Return p(x | z) of pixels in [0, 1] in float64."""
    if kind == "bernoulli":
        return Bernoulli(logits=vae.nets["decoder"](z).double(), validate_args=False)
    out, log_sigma = vae.nets["decoder"](z)
    mean = torch.sigmoid(out.double()) if pixel_range == "unit" else (torch.tanh(out.double()) + 1) / 2
    return Normal(mean, log_sigma.double().exp())


def log_prob(p: Distribution, x: Tensor) -> Tensor:
    """Return log densities [n] in float64 of [n, …]."""
    logs: Tensor = p.log_prob(x.double())
    return logs.flatten(1).sum(1)


def posterior(vae: Vae, x: Tensor) -> tuple[Normal, Tensor, Tensor]:
    mean, log_variance = vae.posterior(x)
    return Normal(mean.double(), torch.exp(log_variance.double() / 2)), mean, log_variance


# --- densities ---------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.floats(-5, 2))
def test_the_gaussian_density_is_that_of_torch(seed: int, log_sigma: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, mean = torch.rand(2, 3, *SHAPE, generator=generator, dtype=torch.float64)
    expected = log_prob(Normal(mean, math.exp(log_sigma)), x)
    found = gaussian_log_prob(x, mean, torch.tensor(log_sigma, dtype=torch.float64))
    torch.testing.assert_close(found, expected)


def test_the_gaussian_density_by_hand() -> None:
    x, mean = torch.tensor([0.5, 0.25]).view(1, 1, 1, 2), torch.tensor([0.25, 0.25]).view(1, 1, 1, 2)
    # 2 log(4 / sqrt(2 pi)) - 1/2
    assert gaussian_log_prob(x, mean, torch.tensor(math.log(0.25))).item() == pytest.approx(0.434711656)


@given(st.integers(0, 2**32), st.floats(0.1, 30))
def test_the_bernoulli_likelihood_is_the_cross_entropy(seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, *SHAPE, generator=generator, dtype=torch.float64)
    logits = spread * torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64)
    expected = log_prob(Bernoulli(logits=logits, validate_args=False), x)
    torch.testing.assert_close(bernoulli_log_prob(x, logits), expected)


def test_the_bernoulli_likelihood_by_hand() -> None:
    x, logits = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), torch.tensor([0.0, math.log(3)]).view(1, 1, 1, 2)
    assert bernoulli_log_prob(x, logits).item() == pytest.approx(-math.log(8))  # 1/2 and 1/4


@given(st.integers(0, 2**32))
def test_the_divergence_is_that_of_torch(seed: int) -> None:
    mean, log_variance = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = kl_divergence(Normal(mean, torch.exp(log_variance / 2)), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), expected)


def test_the_divergence_by_hand() -> None:
    mean, log_variance = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, math.log(4)]])
    assert kl_to_standard_normal(mean, log_variance).item() == pytest.approx(2 + 0.5 * (4 - 1 - math.log(4)))


# --- the bound ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "pixel_range"), KINDS)
@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_the_loss_is_the_negative_bound_by_the_pixel(kind: str, pixel_range: PixelRange, beta: float) -> None:
    vae, x = built(configured(likelihood=kind, beta=beta), pixel_range), images(pixel_range)
    loss, told = vae.loss("elbo", Batch(images=x, labels=None), noise())
    q, mean, log_variance = posterior(vae, x)
    z = mean + torch.exp(log_variance / 2) * noise().normal("latent/posterior", LATENT)
    p = likelihood(vae, kind, pixel_range, z)
    unit = to_unit(x, pixel_range)
    kl = kl_divergence(q, Normal(0.0, 1.0)).sum(1)
    log_p = log_prob(p, unit)
    assert kl.min() > 0.5
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5, check_dtype=False)
    close(loss, (beta * kl - log_p).mean() / PIXELS)
    close(told["loss/elbo"], log_p - kl)
    close(told["loss/kl"], kl)
    close(told["loss/reconstruction"], (unit - p.mean).square().mean((1, 2, 3)))
    assert ("likelihood/sigma" in told) == (kind == "gaussian")


@pytest.mark.parametrize(("kind", "pixel_range"), KINDS)
def test_log_weights_are_exact_log_densities(kind: str, pixel_range: PixelRange) -> None:
    vae, x = built(configured(likelihood=kind), pixel_range), images(pixel_range)
    assert isinstance(vae, HasLikelihood)
    eps = torch.randn(NUM, LATENT, generator=torch.Generator().manual_seed(2))
    q, mean, log_variance = posterior(vae, x)
    z = mean + torch.exp(log_variance / 2) * eps
    expected = (
        log_prob(likelihood(vae, kind, pixel_range, z), to_unit(x, pixel_range))
        + log_prob(Normal(0.0, 1.0), z)
        - log_prob(q, z)
    )
    found = vae.log_weights(x, (mean, log_variance), eps)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4, check_dtype=False)


@pytest.mark.parametrize(("kind", "pixel_range"), KINDS)
def test_the_bound_is_the_mean_of_the_log_weights_and_more_samples_tighten_it(
    kind: str, pixel_range: PixelRange
) -> None:
    vae, x = built(configured(likelihood=kind), pixel_range), images(pixel_range)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        known = vae.posterior(x)
        drawn = [vae.log_weights(x, known, torch.randn(NUM, LATENT, generator=generator)) for _ in range(800)]
        told = [vae.loss("elbo", Batch(images=x, labels=None), Noise(0, k, NUM, slice(0, NUM)))[1] for k in range(800)]
    weights = torch.stack(drawn).double()
    elbo = torch.stack([one["loss/elbo"] for one in told]).double()
    error = (weights.var(0) / 800 + elbo.var(0) / 800).sqrt()
    assert ((elbo.mean(0) - weights.mean(0)).abs() < 4 * error).all()
    bounds = [
        (weights.view(-1, num, NUM).logsumexp(1) - math.log(num)).mean(0)
        for num in (1, 20, 200)  # Burda et al. 2016, theorem 1
    ]
    assert (bounds[0] < bounds[1]).all()
    assert (bounds[1] < bounds[2] + 1e-6).all()


def linear_gaussian(num: int, widened: float) -> tuple[Vae, Tensor, Tensor]:
    """Return a VAE whose decoder is as good as linear, with its images and their exact log-likelihoods.

    At logits below 0.1 the sigmoid is 1/2 + logits / 4 to 2e-5, a thousandth of sigma. The encoder gives the exact
    posterior N(S W^T (x - b) / sigma^2, S), S = (I + W^T W / sigma^2)^-1, or one of ``widened`` variance; W has
    orthogonal columns, so S is diagonal.
    """
    sigma, shape = 0.02, (1, 4, 4)
    vae = built(configured(latent=3, hidden=(), sigma=sigma), shape=shape)
    W = torch.linalg.qr(torch.randn(16, 3, generator=torch.Generator().manual_seed(4))).Q * torch.tensor([3.0, 2, 1.0])
    W = 0.01 * W
    b = 0.5 + 0.01 * torch.linspace(-1, 1, 16)
    S = 1 / (1 + W.square().sum(0) / sigma**2)
    reads = next(layer for layer in vae.nets["encoder"].modules() if isinstance(layer, nn.Linear))
    writes = next(layer for layer in vae.nets["decoder"].modules() if isinstance(layer, nn.Linear))
    means = S[:, None] * W.T / sigma**2
    with torch.no_grad():
        reads.weight.copy_(torch.cat([means, torch.zeros_like(means)]))
        raw = LARGEST_LOG_VARIANCE * torch.atanh(torch.log(widened * S) / LARGEST_LOG_VARIANCE)
        reads.bias.copy_(torch.cat([-means @ b, raw]))
        writes.weight.copy_(4 * W)
        writes.bias.copy_(4 * (b - 0.5))
    marginal = MultivariateNormal(b, W @ W.T + sigma**2 * torch.eye(16))
    generator = torch.Generator().manual_seed(5)
    z, eps = torch.randn(num, 3, generator=generator), torch.randn(num, 16, generator=generator)
    x = b + z @ W.T + sigma * eps
    exact: Tensor = marginal.log_prob(x)  # type: ignore[no-untyped-call]
    return vae, x.view(num, *shape), exact


def test_the_exact_posterior_weighs_every_code_with_the_exact_likelihood() -> None:
    vae, x, exact = linear_gaussian(num=20, widened=1.0)
    eps = 1.5 * torch.randn(20, 3, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(vae.log_weights(x, vae.posterior(x), eps), exact, rtol=0, atol=0.03)
    assert exact.std() > 1


def test_importance_sampling_finds_the_exact_likelihood_of_a_linear_model() -> None:
    vae, x, exact = linear_gaussian(num=10, widened=3.0)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        known = vae.posterior(x)
        drawn = [vae.log_weights(x, known, torch.randn(10, 3, generator=generator)) for _ in range(5000)]
    weights = torch.stack(drawn).double()
    found = weights.logsumexp(0) - math.log(5000)
    assert (found - exact).abs().max() < 0.06
    # What the bound loses is the divergence from the exact posterior.
    lost = 3 * 0.5 * (3 - 1 - math.log(3))
    assert (exact - weights.mean(0)).numpy() == pytest.approx(lost, abs=0.15)


# --- its parts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "pixel_range"), KINDS)
def test_it_encodes_to_the_mean_and_draws_mean_images(kind: str, pixel_range: PixelRange) -> None:
    vae, x = built(configured(likelihood=kind), pixel_range), images(pixel_range)
    assert isinstance(vae, Reconstructs)
    assert isinstance(vae, Generates)
    assert torch.equal(vae.encode(x), vae.nets["encoder"](x)[:, :LATENT])
    for drawn in (vae.decode(100 * vae.encode(x)), vae.sample(NUM, noise())):
        assert drawn.shape == (NUM, *SHAPE)
        assert drawn.min() >= (0 if pixel_range == "unit" else -1)
        assert drawn.max() <= 1
    z = noise().normal("latent/sample", LATENT)
    mean = likelihood(vae, kind, pixel_range, z).mean
    torch.testing.assert_close(to_unit(vae.sample(NUM, noise()), pixel_range), mean, check_dtype=False)


def test_three_workers_have_the_loss_and_the_gradient_of_one() -> None:
    vae, x = built(configured()), images("unit")
    weights = [weight for net in vae.nets.values() for weight in net.parameters()]
    loss, _ = vae.loss("elbo", Batch(images=x, labels=None), noise())
    expected = torch.autograd.grad(loss, weights)
    shares, gradients = [], []
    for rank in range(3):
        rows = World(rank, 3, x.device).slice(NUM)
        part, _ = vae.loss("elbo", Batch(images=x[rows], labels=None, rows=rows, size=NUM), noise(rows=rows))
        shares.append(part * len(x[rows]) / NUM)
        gradients.append(torch.autograd.grad(shares[-1], weights))
    torch.testing.assert_close(torch.stack(shares).sum(), loss)
    for one, *parts in zip(expected, *gradients, strict=True):
        torch.testing.assert_close(torch.stack(parts).sum(0), one)


@given(st.floats(-1e4, 1e4))
def test_the_variance_is_finite_whatever_the_encoder_says(bias: float) -> None:
    vae = built(configured())
    last = [layer for layer in vae.nets["encoder"].modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        last.bias[LATENT:] = bias
    loss, _ = vae.loss("elbo", Batch(images=images("unit"), labels=None), noise())
    assert torch.isfinite(loss)
    _, log_variance = vae.posterior(images("unit"))
    assert log_variance.abs().max() <= LARGEST_LOG_VARIANCE


def test_the_learned_deviation_has_no_slope_where_it_is_the_error() -> None:
    vae, x = built(configured()), images("unit")
    decoder = vae.nets["decoder"]
    assert isinstance(decoder, GaussianDecoder)

    def slope(sigma: float) -> float:
        with torch.no_grad():
            decoder.log_sigma.fill_(math.log(sigma) / PACE)
        loss, told = vae.loss("elbo", Batch(images=x, labels=None), noise())
        assert told["likelihood/sigma"].item() == pytest.approx(sigma, rel=0.02)  # the floor bends it a little
        (gradient,) = torch.autograd.grad(loss, [decoder.log_sigma])
        return gradient.item()

    error = vae.loss("elbo", Batch(images=x, labels=None), noise())[1]["loss/reconstruction"].mean().sqrt().item()
    assert slope(error) == pytest.approx(0, abs=0.2)
    assert slope(2 * error) == pytest.approx(PACE * 0.75, rel=0.02)  # 1 - error^2 / sigma^2
    assert slope(error / 2) == pytest.approx(PACE * -3, rel=0.05)


def test_the_learned_deviation_stays_above_the_rounding_of_pixels() -> None:
    decoder = GaussianDecoder(configured().nets.decoder(SHAPE, LATENT), None)
    with torch.no_grad():
        decoder.log_sigma.fill_(-100.0)
    assert decoder(torch.zeros(1, LATENT))[1].item() == pytest.approx(LEAST_LOG_SIGMA)
    assert math.exp(LEAST_LOG_SIGMA) == pytest.approx(0.0011, abs=1e-4)


def test_a_given_deviation_is_of_the_configuration_not_of_the_state() -> None:
    vae = built(configured(sigma=0.1))
    assert not any("sigma" in name for name in vae.nets["decoder"].state_dict())
    _, told = vae.loss("elbo", Batch(images=images("unit"), labels=None), noise())
    assert told["likelihood/sigma"].item() == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ["gaussian", "bernoulli"])
def test_it_declares_where_the_latent_lies(kind: str) -> None:
    def shapes(vae: Vae) -> Mapping[str, torch.Size]:
        return {f"{name}.{key}": x.shape for name, net in vae.nets.items() for key, x in net.state_dict().items()}

    small, large = built(configured(likelihood=kind)), built(configured(latent=LATENT + 2, likelihood=kind))
    declared = large.latent_axes()
    for name, shape in shapes(small).items():
        longer = list(shape)
        if name in declared:
            longer[declared[name].axis] += 2 * declared[name].parts
        assert list(shapes(large)[name]) == longer
    assert len(declared) == 3
    assert declared.keys() <= shapes(large).keys()


@pytest.mark.parametrize("kind", ["gaussian", "bernoulli"])
def test_it_learns(kind: str) -> None:
    config = configured(likelihood=kind)
    vae = built(config, spread=1.0)
    x = torch.zeros(NUM, *SHAPE)
    for index, image in enumerate(x):
        image[:, index % 4] = 1
    engine = Engine(vae, State.fresh(vae, config), config, World.local("cpu"))
    batch = Batch(images=x, labels=None)
    told = [engine.step(batch, Noise(0, step, NUM, slice(0, NUM))) for step in range(150)]
    assert told[-1]["loss/reconstruction"].mean() < 0.2 * told[0]["loss/reconstruction"].mean()
    assert told[-1]["loss/elbo"].mean() > told[0]["loss/elbo"].mean() + 5
    assert told[-1]["loss/kl"].mean() > 1
    if kind == "gaussian":
        assert told[-1]["likelihood/sigma"] < 0.7 * told[0]["likelihood/sigma"]


# --- what is refused ---------------------------------------------------------------------------------------------


def test_a_bernoulli_likelihood_of_symmetric_pixels_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective.likelihood=bernoulli is of pixels in \[0, 1\].*data.range=unit"):
        built(configured(likelihood="bernoulli"), "symmetric")


def test_a_deviation_of_a_bernoulli_likelihood_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective: sigma=0.1 has no meaning with likelihood=bernoulli"):
        configured(likelihood="bernoulli", sigma=0.1)


@pytest.mark.parametrize("sigma", [0, -1, "wide", math.nan, math.inf, None, [1]])
def test_what_is_no_deviation_is_refused(sigma: object) -> None:
    with pytest.raises(
        ConfigError, match=r"objective.sigma: .* is no standard deviation; use a number above 0, or 'le"
    ):
        configured(sigma=sigma)


@pytest.mark.parametrize("sigma", ["1e-1", 0.1, "learned"])
def test_deviations_are_read_as_yaml_gives_them(sigma: object) -> None:
    assert configured(sigma=sigma).objective.model_dump()["sigma"] == ("learned" if sigma == "learned" else 0.1)


@pytest.mark.parametrize("beta", [0, -1])
def test_a_weight_that_is_none_is_refused(beta: float) -> None:
    with pytest.raises(ConfigError, match=rf"objective.beta={beta}: should be greater than 0"):
        configured(beta=beta)
