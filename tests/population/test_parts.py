"""What a metric is the mean of, on disk and back."""

from collections.abc import Callable

import numpy as np
import pytest

from shoal_ray.population.directory import SearchDirectory
from shoal_ray.population.parts import FOLDER, KEPT, read_parts, write_parts


@pytest.fixture
def directory(make_search: Callable[..., SearchDirectory]) -> SearchDirectory:
    return make_search()


def test_parts_come_back_bit_for_bit_each_from_its_member_and_generation(directory: SearchDirectory) -> None:
    noise = np.random.default_rng(0).normal(size=(2, KEPT, 7))
    for member in range(2):
        for number in range(KEPT):
            write_parts(directory, member, 100 * (1 + number), noise[member, number])
    for member in range(2):
        for number in range(KEPT):
            found = read_parts(directory, member, 100 * (1 + number))
            assert found is not None
            assert found.dtype == np.float64
            np.testing.assert_array_equal(found, noise[member, number])


def test_those_of_long_ago_are_forgotten_and_the_newest_hold(directory: SearchDirectory) -> None:
    ends = (900, 1000, 10_000, 100_000)
    for samples in ends:
        write_parts(directory, 0, samples, np.full(3, float(samples)))
    there = [samples for samples in ends if read_parts(directory, 0, samples) is not None]
    assert there == list(ends[-KEPT:])
    assert len(list((directory.member(0) / FOLDER).iterdir())) == KEPT
    write_parts(directory, 0, 100_000, np.ones(3))  # trained once more after a death
    np.testing.assert_array_equal(read_parts(directory, 0, 100_000), np.ones(3))


@pytest.mark.parametrize("cut", [0, 5, -1])
def test_what_is_lost_or_damaged_is_not_known(directory: SearchDirectory, cut: int) -> None:
    assert read_parts(directory, 0, 100) is None
    write_parts(directory, 0, 100, np.ones(3))
    (path,) = (directory.member(0) / FOLDER).iterdir()
    path.write_bytes(path.read_bytes()[:cut])
    assert read_parts(directory, 0, 100) is None
