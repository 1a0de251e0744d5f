from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal.noise import Noise
from shoal.objectives.augment import AUGMENTATIONS, AugmentationName, augment, color, cutout, translation
from shoal.pixels import PixelRange, to_unit
from shoal.world import World

NAMES: tuple[AugmentationName, ...] = ("color", "translation", "cutout")
BLACK = {"unit": 0.0, "symmetric": -1.0}
SHAPES = [(1, 28, 28), (3, 12, 20), (3, 7, 5)]

sizes = st.tuples(st.sampled_from([1, 3]), st.integers(3, 21), st.integers(3, 21))
ranges = st.sampled_from(["unit", "symmetric"])
seeds = st.integers(0, 2**31)


def pictures(num: int, shape: tuple[int, int, int], seed: int, name: str = "unit") -> Tensor:
    drawn = torch.rand(num, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return drawn if name == "unit" else 2 * drawn - 1


def uniforms(num: int, size: int, seed: int) -> Tensor:
    return torch.rand(num, size, generator=torch.Generator().manual_seed(seed))


def slow_color(image: Tensor, u: list[float], pixel_range: PixelRange) -> Tensor:
    unit = to_unit(image, pixel_range).clone()
    unit += (u[0] - 0.5) / 2
    channels, height, width = unit.shape
    for row in range(height):
        for column in range(width):
            grey = sum(unit[c, row, column].item() for c in range(channels)) / channels
            for c in range(channels):
                unit[c, row, column] = grey + (unit[c, row, column] - grey) * 2 * u[1]
    middle = unit.sum() / unit.numel()
    unit = middle + (unit - middle) * (0.5 + u[2])
    return unit if pixel_range == "unit" else 2 * unit - 1


def slow_translation(image: Tensor, u: list[float], pixel_range: PixelRange) -> Tensor:
    _, height, width = image.shape
    most = round(height / 8), round(width / 8)
    down, right = (int(u[axis] * (2 * most[axis] + 1)) - most[axis] for axis in (0, 1))
    out = torch.full_like(image, BLACK[pixel_range])
    for row in range(height):
        for column in range(width):
            if 0 <= row + down < height and 0 <= column + right < width:
                out[:, row + down, column + right] = image[:, row, column]
    return out


def slow_cutout(image: Tensor, u: list[float], pixel_range: PixelRange) -> Tensor:
    out = image.clone()
    _, height, width = image.shape
    side = round(height / 2), round(width / 2)
    # The first row and column of the square lie anywhere from half of it outside on one end to half on the other.
    top, left = (
        int(u[axis] * (size + 1 - side[axis] % 2)) - side[axis] // 2 for axis, size in enumerate((height, width))
    )
    for row in range(top, top + side[0]):
        for column in range(left, left + side[1]):
            if 0 <= row < height and 0 <= column < width:
                out[:, row, column] = BLACK[pixel_range]
    return out


SLOW: dict[AugmentationName, Callable[[Tensor, list[float], PixelRange], Tensor]] = {
    "color": slow_color,
    "translation": slow_translation,
    "cutout": slow_cutout,
}


def test_every_name_has_its_transformation() -> None:
    assert set(AUGMENTATIONS) == set(get_args(AugmentationName)) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@given(shape=sizes, pixel_range=ranges, seed=seeds)
def test_each_agrees_with_a_slow_reference_image_by_image(
    name: AugmentationName, shape: tuple[int, int, int], pixel_range: PixelRange, seed: int
) -> None:
    images, chosen = pictures(3, shape, seed, pixel_range), AUGMENTATIONS[name]
    u = uniforms(3, chosen.uniforms, seed)
    expected = torch.stack([SLOW[name](x, row.tolist(), pixel_range) for x, row in zip(images, u, strict=True)])
    torch.testing.assert_close(chosen.apply(images, u, pixel_range), expected)


@pytest.mark.parametrize("name", NAMES)
@given(shape=sizes, seed=seeds)
def test_the_range_of_the_pixels_does_not_matter(
    name: AugmentationName, shape: tuple[int, int, int], seed: int
) -> None:
    images, chosen = pictures(3, shape, seed), AUGMENTATIONS[name]
    u = uniforms(3, chosen.uniforms, seed)
    symmetric = chosen.apply(2 * images - 1, u, "symmetric")
    torch.testing.assert_close(to_unit(symmetric, "symmetric"), chosen.apply(images, u, "unit"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_flow_through_it(name: AugmentationName, shape: tuple[int, int, int]) -> None:
    images, chosen = pictures(2, shape, 0, "symmetric").requires_grad_(), AUGMENTATIONS[name]
    u = uniforms(2, chosen.uniforms, 3)
    assert torch.autograd.gradcheck(lambda x: chosen.apply(x, u, "symmetric"), images, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: chosen.apply(x, u, "symmetric"), images, fast_mode=True)


def test_middling_draws_change_nothing_but_the_cutout() -> None:
    images, half = pictures(2, (3, 16, 16), 0), torch.full((2, 3), 0.5)
    torch.testing.assert_close(color(images, half, "unit"), images)
    assert torch.equal(translation(images, half[:, :2], "unit"), images)
    expected = images.clone()
    expected[:, :, 4:12, 4:12] = 0
    assert torch.equal(cutout(images, half[:, :2], "unit"), expected)


LEAST, MOST = 0.0, 1 - 2**-24


@pytest.mark.parametrize(("draw", "by"), [(LEAST, -4), (0.5, 0), (MOST, 4)])
def test_a_picture_of_28_pixels_moves_by_four_at_most(draw: float, by: int) -> None:
    images = pictures(1, (1, 28, 28), 0, "symmetric")
    moved = translation(images, torch.tensor([[draw, 0.5]]), "symmetric")
    kept = slice(max(0, by), 28 + min(0, by))
    came_from = slice(max(0, -by), 28 + min(0, -by))
    assert torch.equal(moved[:, :, kept], images[:, :, came_from])
    assert int((moved == -1).all(dim=(0, 1, 3)).sum()) == abs(by)


@pytest.mark.parametrize(("draw", "rows"), [(LEAST, slice(0, 7)), (0.5, slice(7, 21)), (MOST, slice(21, 28))])
def test_the_square_of_14_pixels_sticks_out_by_half_at_most(draw: float, rows: slice) -> None:
    images = pictures(1, (1, 28, 28), 0)
    expected = images.clone()
    expected[:, :, rows, 7:21] = 0
    assert torch.equal(cutout(images, torch.tensor([[draw, 0.5]]), "unit"), expected)


@pytest.mark.parametrize(
    ("draws", "expected"),
    [  # a red pixel and a black one; their brightness, then their saturation, then their contrast changed alone
        ([LEAST, 0.5, 0.5], [[0.75, -0.25, -0.25], [-0.25, -0.25, -0.25]]),
        ([0.5, LEAST, 0.5], [[1 / 3, 1 / 3, 1 / 3], [0, 0, 0]]),
        ([0.5, MOST, 0.5], [[5 / 3, -1 / 3, -1 / 3], [0, 0, 0]]),
        ([0.5, 0.5, LEAST], [[7 / 12, 1 / 12, 1 / 12], [1 / 12, 1 / 12, 1 / 12]]),
    ],
)
def test_colours_by_hand(draws: list[float], expected: list[list[float]]) -> None:
    images = torch.tensor([[1.0, 0, 0], [0, 0, 0]]).T.reshape(1, 3, 1, 2)
    found = color(images, torch.tensor([draws]), "unit")
    torch.testing.assert_close(found, torch.tensor(expected).T.reshape(1, 3, 1, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_single_precision_stays_single(name: AugmentationName) -> None:
    chosen = AUGMENTATIONS[name]
    for dtype in (torch.float32, torch.bfloat16):
        out = chosen.apply(pictures(2, (3, 8, 8), 0).to(dtype), uniforms(2, chosen.uniforms, 0), "unit")
        assert out.dtype == dtype


def noise_of(rank: int, world: int, batch: int = 10, index: int = 4) -> Noise:
    return Noise(7, index, batch, World(rank, world, torch.device("cpu")).slice(batch))


def test_no_augmentation_gives_the_images_themselves() -> None:
    images = pictures(10, (1, 8, 8), 0)
    assert augment(images, (), noise_of(0, 1), "augment", "unit") is images


@pytest.mark.parametrize("world", [2, 3])
def test_the_workers_slices_join_to_the_whole(world: int) -> None:
    images = pictures(10, (3, 16, 16), 0, "symmetric")
    whole = augment(images, NAMES, noise_of(0, 1), "augment/x", "symmetric")
    parts = []
    for rank in range(world):
        rows = World(rank, world, torch.device("cpu")).slice(10)
        parts.append(augment(images[rows], NAMES, noise_of(rank, world), "augment/x", "symmetric"))
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("name", NAMES)
def test_a_transformation_has_draws_of_its_own_below_the_purpose(name: AugmentationName) -> None:
    images, chosen = pictures(10, (3, 16, 16), 0), AUGMENTATIONS[name]
    expected = chosen.apply(images, noise_of(0, 1).uniform(f"augment/real/{name}", chosen.uniforms), "unit")
    assert torch.equal(augment(images, (name,), noise_of(0, 1), "augment/real", "unit"), expected)


def test_they_are_applied_in_their_order() -> None:
    images, noise = pictures(10, (3, 16, 16), 0), noise_of(0, 1)
    expected: Any = images
    for name in NAMES:
        expected = augment(expected, (name,), noise, "augment", "unit")
    assert torch.equal(augment(images, NAMES, noise, "augment", "unit"), expected)
    other_way = augment(images, NAMES[::-1], noise, "augment", "unit")
    assert not torch.allclose(other_way, expected)


def test_images_purposes_and_batches_have_draws_of_their_own() -> None:
    same = pictures(1, (3, 16, 16), 0).expand(10, 3, 16, 16)
    first = augment(same, ("translation", "color"), noise_of(0, 1), "a", "unit")
    assert len({tuple(image.flatten().tolist()) for image in first}) == 10
    assert not torch.equal(augment(same, ("translation", "color"), noise_of(0, 1), "b", "unit"), first)
    assert not torch.equal(augment(same, ("translation", "color"), noise_of(0, 1, index=5), "a", "unit"), first)
    assert torch.equal(augment(same, ("translation", "color"), noise_of(0, 1), "a", "unit"), first)
