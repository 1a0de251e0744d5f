import pytest
import torch
from torch import Tensor, nn

from shoal.config import build_config
from shoal.engine import Engine
from shoal.errors import ConfigError
from shoal.noise import Noise
from shoal.objectives import Batch, DenoisingAutoencoder, build
from shoal.pixels import PixelRange, to_unit
from shoal.state import State
from shoal.world import World

SHAPE = (3, 6, 5)
NUM = 40
RANGES: list[PixelRange] = ["unit", "symmetric"]


def denoiser(pixel_range: PixelRange = "unit", **keys: object) -> DenoisingAutoencoder:
    config = build_config(
        {
            "objective": {"name": "denoising_autoencoder", **keys},
            "nets": {"name": "mlp", "latent": 4, "hidden": [8]},
        }
    )
    torch.manual_seed(0)
    objective = build(config.objective, config.nets, SHAPE, pixel_range)
    assert isinstance(objective, DenoisingAutoencoder)
    return objective


def images(pixel_range: PixelRange, num: int = NUM) -> Tensor:
    x = torch.rand(num, *SHAPE, generator=torch.Generator().manual_seed(1))
    return x if pixel_range == "unit" else 2 * x - 1


def noise(rows: slice | None = None) -> Noise:
    return Noise(3, 5, NUM, rows or slice(0, NUM))


@pytest.mark.parametrize("pixel_range", RANGES)
@pytest.mark.parametrize("corruption", ["gaussian", "mask"])
def test_the_clean_image_is_asked_for_of_the_damaged_one(pixel_range: PixelRange, corruption: str) -> None:
    objective, x = denoiser(pixel_range, corruption=corruption), images(pixel_range)
    loss, told = objective.loss("reconstruction", Batch(images=x, labels=None), noise())
    y = objective.decode(objective.encode(objective.corrupt(x, noise())))
    total = 0.0
    for clean, mended in zip(to_unit(x, pixel_range).flatten(), to_unit(y, pixel_range).flatten(), strict=True):
        total += (clean.item() - mended.item()) ** 2
    assert loss.item() == pytest.approx(total / x.numel(), rel=1e-5)
    assert told["loss/reconstruction"].shape == (NUM,)
    torch.testing.assert_close(told["loss/reconstruction"].mean(), loss)


@pytest.mark.parametrize(("pixel_range", "black", "white"), [("unit", 0.0, 1.0), ("symmetric", -1.0, 1.0)])
def test_grey_for_black_and_white_images_costs_a_quarter(pixel_range: PixelRange, black: float, white: float) -> None:
    objective = denoiser(pixel_range)
    for weight in objective.nets["decoder"].parameters():
        nn.init.zeros_(weight)  # every image comes back grey
    x = torch.full((2, *SHAPE), black)
    x[1] = white
    batch = Batch(images=x, labels=None)
    assert objective.loss("reconstruction", batch, Noise(3, 5, 2, slice(0, 2)))[0].item() == pytest.approx(0.25)


@pytest.mark.parametrize(("pixel_range", "factor"), [("unit", 1), ("symmetric", 2)])
def test_gaussian_noise_has_the_given_deviation_of_pixels_in_0_1(pixel_range: PixelRange, factor: int) -> None:
    objective, x = denoiser(pixel_range, corruption="gaussian", amount=0.2), images(pixel_range)
    added = (objective.corrupt(x, noise()) - x) / factor
    assert added.std().item() == pytest.approx(0.2, rel=0.03)
    assert added.mean().item() == pytest.approx(0, abs=0.01)
    same = denoiser("unit", corruption="gaussian", amount=0.2).corrupt(torch.zeros_like(x), noise())
    torch.testing.assert_close(added, same)


@pytest.mark.parametrize(("pixel_range", "black"), [("unit", 0.0), ("symmetric", -1.0)])
def test_a_mask_makes_whole_pixels_black_and_leaves_the_others(pixel_range: PixelRange, black: float) -> None:
    objective, x = denoiser(pixel_range, corruption="mask", amount=0.3), images(pixel_range)
    damaged = objective.corrupt(x, noise())
    masked = (damaged != x).any(1, keepdim=True).expand_as(x)
    assert (damaged[masked] == black).all()
    assert torch.equal(damaged[~masked], x[~masked])
    assert masked.float().mean().item() == pytest.approx(0.3, abs=0.04)
    assert len({tuple(rows) for rows in masked[:, 0].flatten(1).tolist()}) > NUM / 2  # of each image others


@pytest.mark.parametrize("corruption", ["gaussian", "mask"])
def test_workers_damage_an_image_as_one_alone_does(corruption: str) -> None:
    objective, x = denoiser(corruption=corruption), images("unit")
    parts = [
        objective.corrupt(x[rows], noise(rows)) for rows in (World(rank, 3, x.device).slice(NUM) for rank in range(3))
    ]
    assert torch.equal(torch.cat(parts), objective.corrupt(x, noise()))


def test_only_training_damages_images() -> None:
    objective, x = denoiser(), images("unit")
    again = torch.sigmoid(objective.nets["decoder"](objective.nets["encoder"](x)))
    assert torch.equal(objective.decode(objective.encode(x)), again)


def test_a_sigmoid_code_lies_between_0_and_1() -> None:
    code = denoiser(code="sigmoid").encode(10 * images("unit"))
    assert ((code > 0) & (code < 1)).all()


@pytest.mark.parametrize("amount", [1, 1.5])
def test_a_mask_that_leaves_nothing_is_refused(amount: float) -> None:
    with pytest.raises(
        ConfigError, match=rf"objective: amount={amount} with corruption=mask leaves nothing .* below 1"
    ):
        denoiser(corruption="mask", amount=amount)
    assert denoiser(corruption="gaussian", amount=amount)


@pytest.mark.parametrize("amount", [0, -0.1])
def test_an_amount_that_is_none_is_refused(amount: float) -> None:
    with pytest.raises(ConfigError, match=rf"objective.amount={amount}: should be greater than 0"):
        denoiser(amount=amount)


@pytest.mark.parametrize("corruption", ["gaussian", "mask"])
def test_it_learns_to_mend(corruption: str) -> None:
    """Stripes under noise, whose place is all there is to know."""
    config = build_config(
        {
            "objective": {"name": "denoising_autoencoder", "corruption": corruption, "amount": 0.4},
            "nets": {"name": "mlp", "latent": 4, "hidden": [32]},
            "optim": {"lr": 1e-2},
            "batch": NUM,
        }
    )
    torch.manual_seed(0)
    objective = build(config.objective, config.nets, SHAPE, "unit")
    engine = Engine(objective, State.fresh(objective, config), config, World.local("cpu"))
    x = torch.zeros(NUM, *SHAPE)
    for index, image in enumerate(x):
        image[:, index % 6] = 1
    batch = Batch(images=x, labels=None)
    errors = [
        engine.step(batch, Noise(0, step, NUM, slice(0, NUM)))["loss/reconstruction"].mean().item()
        for step in range(120)
    ]
    assert errors[-1] < 0.1 * errors[0]
