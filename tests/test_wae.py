from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal.config import RunConfig, build_config
from shoal.engine import Engine
from shoal.errors import ConfigError
from shoal.noise import Noise
from shoal.objectives import Batch, Generates, Reconstructs, Wae, build
from shoal.objectives.mmd import KERNELS, SCALES, unbiased_mmd
from shoal.objectives.wae import gather_with_gradient
from shoal.pixels import PixelRange, to_unit
from shoal.state import State
from shoal.world import World

Result = TypeVar("Result")
SHAPE = (1, 4, 4)
PIXELS = 16
NUM = 10
LATENT = 3
WORKERS = 3
CPU = torch.device("cpu")


def configured(latent: int = LATENT, **keys: object) -> RunConfig:
    return build_config(
        {
            "objective": {"name": "wae", **keys},
            "nets": {"name": "mlp", "latent": latent, "hidden": [8], "activation": "gelu"},
            "optim": {"lr": 1e-2},
            "batch": NUM,
        }
    )


def built(pixel_range: PixelRange = "unit", latent: int = LATENT, **keys: object) -> Wae:
    torch.manual_seed(0)
    config = configured(latent, **keys)
    objective = build(config.objective, config.nets, SHAPE, pixel_range)
    assert isinstance(objective, Wae)
    return objective


def images(pixel_range: PixelRange = "unit") -> Tensor:
    x = torch.rand(NUM, *SHAPE, generator=torch.Generator().manual_seed(1))
    return x if pixel_range == "unit" else 2 * x - 1


def noise(rows: slice | None = None) -> Noise:
    return Noise(3, 5, NUM, rows or slice(0, NUM))


def on_workers(work: Callable[[slice, Callable[[Tensor], Tensor]], Result]) -> list[Result]:
    """Do ``work(rows, sum)`` on threads; ``sum`` adds up what all of them give, as an all-reduce does."""
    given: dict[int, Tensor] = {}
    meeting = Barrier(WORKERS, timeout=60)

    def run(rank: int) -> Result:
        def total(value: Tensor) -> Tensor:
            given[rank] = value.detach()
            meeting.wait()
            result = torch.stack([given[other] for other in range(WORKERS)]).sum(0)
            meeting.wait()
            return result

        return work(World(rank, WORKERS, CPU).slice(NUM), total)

    with ThreadPoolExecutor(WORKERS) as threads:
        return list(threads.map(run, range(WORKERS)))


def similarity(kind: str, x: list[float], y: list[float], usual: float) -> float:
    squared = sum((a - b) ** 2 for a, b in zip(x, y, strict=True))
    total = 0.0
    for scale in SCALES:
        c = scale * usual
        total += c / (c + squared) if kind == "imq" else 2.718281828459045 ** (-squared / c)
    return total


def slow_mmd(kind: str, x: Tensor, y: Tensor, usual: float) -> float:
    """Gretton et al. 2012, eq. 3, pair by pair."""
    a, b = x.tolist(), y.tolist()
    n, m = len(a), len(b)
    result = sum(similarity(kind, a[i], a[j], usual) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    result += sum(similarity(kind, b[i], b[j], usual) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return result - 2 * sum(similarity(kind, p, q, usual) for p in a for q in b) / (n * m)


# --- the discrepancy ---------------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(KERNELS)), st.integers(2, 7), st.integers(2, 7), st.integers(1, 5), st.integers(0, 2**32))
def test_it_is_the_sum_over_pairs(kind: str, n: int, m: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(n, size, generator=generator, dtype=torch.float64)
    y = torch.randn(m, size, generator=generator, dtype=torch.float64) + 1
    found = unbiased_mmd(x, y, KERNELS[kind], usual=2.0 * size)
    assert found.item() == pytest.approx(slow_mmd(kind, x, y, 2.0 * size), abs=1e-9)


def test_it_by_hand() -> None:
    def kernel(squares: Tensor, usual: float) -> Tensor:
        return usual / (usual + squares)

    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])
    # Within: 2/3 and 2/6. Across: 0, 4, 1 and 1 squared: 1, 1/3, 2/3 and 2/3.
    assert unbiased_mmd(x, y, kernel, usual=2.0).item() == pytest.approx(1 - 2 * (8 / 3) / 4)


@pytest.mark.parametrize("kind", KERNELS)
def test_the_kernels_sum_over_their_scales(kind: str) -> None:
    squares = torch.tensor([0.0, 1.0, 10.0])
    for square, value in zip(squares.tolist(), KERNELS[kind](squares, 6.0).tolist(), strict=True):
        assert value == pytest.approx(similarity(kind, [square**0.5], [0.0], 6.0), rel=1e-5)
    assert KERNELS[kind](torch.zeros(1), 6.0).item() == len(SCALES)


@pytest.mark.parametrize("kind", KERNELS)
def test_of_the_prior_with_itself_it_is_zero_on_average_and_of_others_more(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def mean_and_error(change: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        drawn = torch.randn(300, 2, 16, 4, generator=generator)
        found = torch.stack([unbiased_mmd(change(x), y, KERNELS[kind], usual=8.0) for x, y in drawn])
        return found.mean().item(), found.std().item() / 300**0.5

    mean, error = mean_and_error(lambda x: x)
    assert abs(mean) < 3 * error
    assert error < 0.02
    for change in (lambda x: x + 0.5, lambda x: 2 * x, lambda x: 0.5 * x):
        mean, error = mean_and_error(change)
        assert mean > 10 * error


# --- the objective -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixel_range", ["unit", "symmetric"])
@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_the_loss_is_the_error_and_the_weighted_discrepancy_by_the_pixel(pixel_range: PixelRange, kernel: str) -> None:
    wae, x = built(pixel_range, kernel=kernel, weight=7.0), images(pixel_range)
    loss, told = wae.loss("reconstruction", Batch(images=x, labels=None), noise())
    z = wae.nets["encoder"](x)
    y = wae.nets["decoder"](z).sigmoid() if pixel_range == "unit" else wae.nets["decoder"](z).tanh()
    squares = (to_unit(x, pixel_range) - to_unit(y, pixel_range)).square().sum((1, 2, 3))
    mmd = slow_mmd(kernel, z, noise().normal("latent/prior", LATENT), usual=2.0 * LATENT)
    assert loss.item() == pytest.approx((squares.mean().item() + 7 * mmd) / PIXELS, rel=1e-4)
    torch.testing.assert_close(told["loss/reconstruction"], squares / PIXELS)
    assert told["loss/mmd"].item() == pytest.approx(mmd, rel=1e-4)
    assert told["loss/mmd"].ndim == 0


def test_three_uneven_workers_have_the_gradient_and_the_discrepancy_of_one() -> None:
    wae, x = built(weight=1000.0), images()  # the discrepancy rules
    weights = [weight for net in wae.nets.values() for weight in net.parameters()]
    loss, told = wae.loss("reconstruction", Batch(images=x, labels=None), noise())
    expected = torch.autograd.grad(loss, weights)
    assert told["loss/mmd"] > 0.1

    def work(rows: slice, total: Callable[[Tensor], Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        batch = Batch(images=x[rows], labels=None, rows=rows, size=NUM, sum=total)
        part, said = wae.loss("reconstruction", batch, noise(rows))
        engine_weight = (rows.stop - rows.start) * WORKERS / NUM
        return said["loss/mmd"], torch.autograd.grad(part * engine_weight, weights)

    found = on_workers(work)
    for mmd, _ in found:
        torch.testing.assert_close(mmd, told["loss/mmd"])
    for one, *parts in zip(expected, *(gradients for _, gradients in found), strict=True):
        mean = torch.stack(parts).mean(0)  # as DDP does
        torch.testing.assert_close(mean, one, rtol=1e-4, atol=1e-5 * max(1, one.abs().max().item()))


def test_the_joined_codes_are_those_of_all_with_ones_own_gradient() -> None:
    z, prior = torch.randn(2, NUM, LATENT, generator=torch.Generator().manual_seed(0))

    def work(rows: slice, total: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        own = z[rows].clone().requires_grad_()
        batch = Batch(images=images()[rows], labels=None, rows=rows, size=NUM, sum=total)
        codes, draws = gather_with_gradient(batch, own, prior[rows])
        (gradient,) = torch.autograd.grad(codes.square().sum(), own)
        return codes, draws, gradient

    found = on_workers(work)
    for codes, draws, _ in found:
        assert torch.equal(codes, z)
        assert torch.equal(draws, prior)
    assert torch.equal(torch.cat([gradient for _, _, gradient in found]), 2 * z)


@pytest.mark.parametrize("pixel_range", ["unit", "symmetric"])
def test_it_reconstructs_and_decodes_the_prior(pixel_range: PixelRange) -> None:
    wae, x = built(pixel_range), images(pixel_range)
    assert isinstance(wae, Reconstructs)
    assert isinstance(wae, Generates)
    assert torch.equal(wae.encode(x), wae.nets["encoder"](x))
    z = noise().normal("latent/sample", LATENT)
    assert torch.equal(wae.sample(NUM, noise()), wae.decode(z))
    for drawn in (wae.decode(100 * z), wae.sample(NUM, noise())):
        assert drawn.shape == (NUM, *SHAPE)
        assert drawn.min() >= (0 if pixel_range == "unit" else -1)
        assert drawn.max() <= 1


def test_it_declares_where_the_latent_lies() -> None:
    small, large = built().nets, built(latent=LATENT + 2).nets
    declared = built(latent=LATENT + 2).latent_axes()
    longer = {
        f"{name}.{key}": next(
            axis for axis in range(x.ndim) if x.shape[axis] != large[name].state_dict()[key].shape[axis]
        )
        for name, net in small.items()
        for key, x in net.state_dict().items()
        if x.shape != large[name].state_dict()[key].shape
    }
    assert {name: place.axis for name, place in declared.items()} == longer
    assert {place.parts for place in declared.values()} == {1}


def test_training_draws_the_codes_to_the_prior() -> None:
    config = configured(weight=10.0)
    wae = built(weight=10.0)
    engine = Engine(wae, State.fresh(wae, config), config, World.local("cpu"))
    batch = Batch(images=images(), labels=None)
    told = [engine.step(batch, Noise(0, step, NUM, slice(0, NUM))) for step in range(100)]
    first, last = (torch.stack([one["loss/mmd"] for one in some]).mean() for some in (told[:20], told[-20:]))
    assert last < 0.2 * first
    assert told[-1]["loss/reconstruction"].mean() < told[0]["loss/reconstruction"].mean()


def test_a_batch_without_a_pair_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch 1 has no pair of codes to hold against the prior; use batch >= 2"):
        built().cautions(1)
    assert built().cautions(2) == []
