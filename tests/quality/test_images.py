from math import prod

import numpy as np
import pytest
import torch
from torch import Tensor

from shoal.data import DataSet
from shoal.errors import DataError
from shoal.quality import images
from shoal.quality.images import Block, Sample, Workshare
from shoal.world import World


def test_all_images_come_in_their_order(corner_data: DataSet) -> None:
    sample = Sample.of(corner_data, "test")
    assert len(sample) == 64
    assert sample.ids.tolist() == list(range(96, 160))
    found = sample.pixels(Block(1, slice(10, 20), 10), torch.device("cpu"))
    assert np.array_equal(found.numpy(), corner_data.rows("test", 10, 20))


def test_a_choice_is_of_every_class_and_the_same_every_time(corner_data: DataSet) -> None:
    chosen = Sample.of(corner_data, "train", 40)
    labels = chosen.labels()
    assert labels is not None
    assert labels.dtype == torch.int64
    assert torch.bincount(labels).min() > 4  # the first 40 rows have two of the classes
    assert chosen.ids.tolist() == sorted(set(chosen.ids.tolist())) == Sample.of(corner_data, "train", 40).ids.tolist()


@pytest.mark.parametrize("num", [1, 30, 48])
def test_others_are_others_and_fewer_are_some_of_more(corner_data: DataSet, num: int) -> None:
    first, others = (set(Sample.of(corner_data, "train", num, after=after).ids.tolist()) for after in (0, num))
    assert len(first) == len(others) == num
    assert not first & others
    assert first <= set(Sample.of(corner_data, "train", 60).ids.tolist())


@pytest.mark.parametrize(("num", "after"), [(97, 0), (0, 0), (50, 47), (None, 96)])
def test_more_than_there_are_and_none_at_all_are_refused(corner_data: DataSet, num: int | None, after: int) -> None:
    with pytest.raises(DataError, match=rf"split 'train' of .* has {96 - after}; use --num {96 - after}"):
        Sample.of(corner_data, "train", num, after=after)


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 28, 28), 500), ((3, 32, 32), 500), ((3, 64, 64), 125), ((3, 2048, 2048), 1)]
)
def test_large_images_come_in_small_blocks(shape: tuple[int, int, int], size: int) -> None:
    seen: list[int] = []

    def work(block: Block) -> dict[str, Tensor]:
        seen.append(block.num)
        assert block.size == size
        return {"number": torch.arange(block.rows.start, block.rows.stop)}

    found = Workshare(World.local("cpu"), shape).tables("", 2 * size + 1, work)["number"]
    assert seen == [size, size, 1]
    assert found.dtype == torch.float64
    assert found.tolist() == list(range(2 * size + 1))
    assert size == 1 or prod(shape) * size <= images.BLOCK_PIXELS


def test_noise_of_a_block_is_the_same_however_many_images_there_are() -> None:
    whole, cut = Block(3, slice(30, 40), 10), Block(3, slice(30, 34), 10)
    drawn = [block.noise(torch.device("cpu")).normal("latent", 5) for block in (whole, cut)]
    assert drawn[0].shape == (10, 5)
    assert torch.equal(drawn[0][:4], drawn[1])
