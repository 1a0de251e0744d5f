import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.noise import Noise
from shoal.world import World

CPU = torch.device("cpu")


def whole(batch: int, size: int, seed: int = 0, index: int = 0, purpose: str = "latent") -> torch.Tensor:
    return Noise(seed, index, batch, slice(0, batch)).normal(purpose, size)


@given(st.integers(1, 7), st.integers(0, 60), st.integers(1, 40), st.integers(0, 2**40), st.integers(0, 10**9))
def test_the_slices_of_all_workers_join_to_the_whole(world: int, more: int, size: int, seed: int, index: int) -> None:
    batch = world + more
    parts = [
        Noise(seed, index, batch, World(rank, world, CPU).slice(batch)).normal("latent", size) for rank in range(world)
    ]
    joined = torch.cat(parts)
    assert joined.shape == (batch, size)
    assert joined.dtype == torch.float32
    assert torch.equal(joined, whole(batch, size, seed, index))


@given(st.integers(1, 70), st.integers(1, 40), st.integers(1, 40))
def test_a_larger_latent_keeps_the_noise_of_the_old_dimensions(batch: int, size: int, more: int) -> None:
    assert torch.equal(whole(batch, size), whole(batch, size + more)[:, :size])


@given(st.integers(0, 2**62), st.integers(-1, 10**9))
def test_the_same_key_draws_the_same(seed: int, index: int) -> None:
    noise = Noise(seed, index, 6, slice(0, 6))
    first = noise.normal("latent", 3)
    noise.normal("other", 3)
    assert torch.equal(noise.normal("latent", 3), first)
    assert torch.equal(whole(6, 3, seed, index), first)


few_keys = st.tuples(st.sampled_from([0, 1, 2**40]), st.sampled_from([-1, 0, 1, 11]), st.sampled_from(["z", "zz", "1"]))


@given(st.lists(few_keys, min_size=2, max_size=8, unique=True))
def test_another_seed_batch_or_purpose_draws_something_else(keys: list[tuple[int, int, str]]) -> None:
    drawn = {tuple(whole(4, 4, seed, index, purpose).flatten().tolist()) for seed, index, purpose in keys}
    assert len(drawn) == len(keys)


@pytest.mark.parametrize(("one", "two"), [((1, 11), (11, 1)), ((1, 23), (12, 3))])
def test_seed_and_batch_number_do_not_run_together(one: tuple[int, int], two: tuple[int, int]) -> None:
    assert not torch.equal(whole(4, 4, *one), whole(4, 4, *two))


def test_it_is_standard_normal() -> None:
    drawn = whole(1000, 50)
    assert abs(drawn.mean().item()) < 0.02
    assert abs(drawn.std().item() - 1) < 0.02
    assert drawn.T.corrcoef().fill_diagonal_(0).abs().max().item() < 0.2


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    whole(4, 4)
    assert torch.equal(torch.get_rng_state(), before)
