from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.config import RunConfig
from shoal.data import DataSet
from shoal.objectives import Autoencoder, Gan
from shoal.pixels import PixelRange, squash, to_float, to_uint8, to_unit
from shoal.render import GAP, Pictures, above, grid, inference
from shoal.state import State, build_objective

Tiny = Callable[..., RunConfig]
CPU = torch.device("cpu")
RANGES: list[PixelRange] = ["unit", "symmetric"]


def noise(num: int, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (num, *shape), dtype=np.uint8)  # never white


def cell(picture: np.ndarray, row: int, column: int, height: int, width: int) -> np.ndarray:
    """Return the image at a place of a grid, [C, H, W]."""
    top, left = row * (height + GAP), column * (width + GAP)
    return picture[top : top + height, left : left + width].transpose(2, 0, 1)


@given(st.integers(1, 12), st.integers(1, 6), st.sampled_from([1, 3]), st.integers(1, 5), st.integers(1, 5))
def test_a_grid_shows_each_image_in_its_place_on_white(
    num: int, columns: int, channels: int, height: int, width: int
) -> None:
    images = noise(num, (channels, height, width))
    picture = grid(images, columns)
    lines = -(-num // columns)
    assert picture.shape == (lines * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels)
    assert picture.dtype == np.uint8
    for index in range(num):
        assert np.array_equal(cell(picture, index // columns, index % columns, height, width), images[index])
    assert (picture != 255).sum() == images.size


def test_a_grid_takes_tensors_too() -> None:
    images = noise(5, (3, 4, 4))
    assert np.array_equal(grid(torch.from_numpy(images), 2), grid(images, 2))


@given(st.integers(1, 11), st.integers(1, 5))
def test_each_reconstruction_is_below_its_original(num: int, columns: int) -> None:
    originals, again = noise(num, (1, 3, 4)), noise(num, (1, 3, 4), seed=1)
    picture = above(originals, torch.from_numpy(again), columns)
    for index in range(num):
        row, column = 2 * (index // columns), index % columns
        assert np.array_equal(cell(picture, row, column, 3, 4), originals[index])
        assert np.array_equal(cell(picture, row + 1, column, 3, 4), again[index])
    assert (picture != 255).sum() == originals.size + again.size


def test_inference_has_no_gradients_and_gives_the_modes_back() -> None:
    nets = {name: torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)) for name in "ab"}
    nets["b"].eval()
    with inference(nets):
        assert not any(net.training for net in nets.values())
        assert not nets["a"](torch.ones(3, 2)).requires_grad
    assert nets["a"].training
    assert nets["a"][1].training
    assert not nets["b"].training
    assert nets["a"](torch.ones(3, 2)).requires_grad
    with pytest.raises(KeyError), inference(nets):
        raise KeyError
    assert nets["a"].training
    assert not nets["b"].training


def pictures_of(config: RunConfig, data: DataSet) -> tuple[Pictures, State]:
    objective = build_objective(config, data.shape)
    state = State.fresh(objective, config)
    return Pictures(objective, state, data, config, CPU), state


@pytest.mark.parametrize("pixel_range", RANGES)
@pytest.mark.parametrize("colour", [False, True])
def test_a_run_draws_what_its_objective_can(
    tiny: Tiny, small_data: Path, colour_data: Path, pixel_range: PixelRange, colour: bool
) -> None:
    data = DataSet.open(colour_data if colour else small_data)
    channels, size, _ = data.shape
    for kind, name, lines in (("gan", "samples", 8), ("autoencoder", "reconstructions", 4)):
        pictures, _ = pictures_of(tiny(kind, f"data.range={pixel_range}"), data)
        drawn = pictures.draw()
        assert list(drawn) == [f"images/{name}"]
        picture = drawn[f"images/{name}"]
        assert picture.shape == (lines * (size + GAP) - GAP, 8 * (size + GAP) - GAP, channels)
        assert picture.dtype == np.uint8


def test_originals_are_the_first_of_the_test_split(tiny: Tiny, small_data: Path) -> None:
    data = DataSet.open(small_data)
    pictures, _ = pictures_of(tiny("autoencoder"), data)
    picture = pictures.draw()["images/reconstructions"]
    for index, original in enumerate(data.rows("test", 0, 16)):
        assert np.array_equal(cell(picture, 2 * (index // 8), index % 8, 28, 28), original)


def test_a_data_set_of_one_split_shows_what_is_learned_from(tiny: Tiny, tmp_path: Path) -> None:
    from shoal.data.write import write_dataset

    images = noise(3, (1, 4, 4))
    write_dataset(tmp_path / "d", {"all": [(images, None)]}, shape=(1, 4, 4), class_names=None, source="noise")
    pictures, _ = pictures_of(tiny("autoencoder", "data.split=all"), DataSet.open(tmp_path / "d"))
    picture = pictures.draw()["images/reconstructions"]
    for index in range(3):
        assert np.array_equal(cell(picture, 0, index, 4, 4), images[index])


@pytest.mark.parametrize("kind", ["gan", "autoencoder"])
def test_pictures_are_of_the_average_and_the_same_until_it_moves(tiny: Tiny, small_data: Path, kind: str) -> None:
    pictures, state = pictures_of(tiny(kind), DataSet.open(small_data))
    name, first = next(iter(pictures.draw().items()))
    with torch.no_grad():
        for net in state.nets.values():
            for weight in net.parameters():
                weight.normal_()
    assert np.array_equal(pictures.draw()[name], first)
    state.samples = 20
    state.update_ema(20, 100)
    assert not np.array_equal(pictures.draw()[name], first)


@pytest.mark.parametrize("kind", ["gan", "autoencoder"])
def test_drawing_moves_no_statistics_and_no_mode(tiny: Tiny, small_data: Path, kind: str) -> None:
    config = tiny(kind, "nets.name=conv", "nets.width=2", "nets.norm=batch", "ema.half_life_samples=0")
    pictures, state = pictures_of(config, DataSet.open(small_data))
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    pictures.draw()
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())
    assert all(module.training for net in state.nets.values() for module in net.modules())


def test_reconstructions_are_those_of_the_networks(tiny: Tiny, small_data: Path) -> None:
    data = DataSet.open(small_data)
    config = tiny("autoencoder")
    objective = build_objective(config, data.shape)
    assert isinstance(objective, Autoencoder)
    picture = Pictures(objective, State.fresh(objective, config), data, config, CPU).draw()["images/reconstructions"]
    with torch.no_grad():
        x = to_float(torch.from_numpy(data.rows("test", 0, 16).copy()), "unit")
        again = to_uint8(objective.decode(objective.encode(x)), "unit").numpy()
    for index in range(16):
        assert np.array_equal(cell(picture, 2 * (index // 8) + 1, index % 8, 28, 28), again[index])


def test_samples_follow_the_seed_of_the_run(tiny: Tiny, small_data: Path) -> None:
    data = DataSet.open(small_data)
    objective = build_objective(tiny("gan"), data.shape)
    assert isinstance(objective, Gan)

    def draw(seed: int) -> np.ndarray:
        config = tiny("gan", f"seed={seed}")
        return Pictures(objective, State.fresh(objective, config), data, config, CPU).draw()["images/samples"]

    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))


# --- what a pixel is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixel_range", RANGES)
def test_every_pixel_survives_the_way_there_and_back(pixel_range: PixelRange) -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    floats = to_float(pixels, pixel_range)
    assert floats.dtype == torch.float32
    assert torch.equal(to_uint8(floats, pixel_range), pixels)
    torch.testing.assert_close(to_unit(floats, pixel_range), torch.arange(256) / 255)
    assert pixels.tolist() == list(range(256))


@pytest.mark.parametrize(("pixel_range", "ends"), [("unit", [0.0, 1.0]), ("symmetric", [-1.0, 1.0])])
def test_a_range_goes_from_black_to_white(pixel_range: PixelRange, ends: list[float]) -> None:
    black_and_white = to_float(torch.tensor([0, 255], dtype=torch.uint8), pixel_range)
    torch.testing.assert_close(black_and_white, torch.tensor(ends))
    torch.testing.assert_close(squash(torch.tensor([-100.0, 100.0]), pixel_range), torch.tensor(ends))
    middle = squash(torch.tensor([0.0]), pixel_range).item()
    assert middle == pytest.approx(sum(ends) / 2)
    outside = torch.tensor([ends[0] - 3, ends[1] + 3])
    assert to_uint8(outside, pixel_range).tolist() == [0, 255]
