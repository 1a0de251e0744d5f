import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import TypeVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal.checkpoint import Checkpoint
from shoal.config import RunConfig, build_config
from shoal.engine import Engine
from shoal.errors import ConfigError
from shoal.noise import Noise
from shoal.objectives import Batch, Generates, HasCodebook, Reconstructs, VqVae, build
from shoal.objectives.codebook import Codebook
from shoal.pixels import PixelRange, to_unit
from shoal.render import inference
from shoal.run import Run
from shoal.state import State
from shoal.world import World

Result = TypeVar("Result")
SHAPE = (1, 28, 28)
TOKENS = 49
NUM = 10
SIZE = 3
CODES = 16
WORKERS = 3
CPU = torch.device("cpu")


def configured(size: int = SIZE, **keys: object) -> RunConfig:
    return build_config(
        {
            "objective": {"name": "vq_vae", "num_codes": CODES, **keys},
            "nets": {"name": "conv", "latent": size, "width": 4, "norm": "none", "activation": "gelu"},
            "optim": {"lr": 1e-2},
            "batch": NUM,
        }
    )


def built(pixel_range: PixelRange = "unit", size: int = SIZE, **keys: object) -> VqVae:
    torch.manual_seed(0)
    config = configured(size, **keys)
    objective = build(config.objective, config.nets, SHAPE, pixel_range)
    assert isinstance(objective, VqVae)
    return objective


def images(pixel_range: PixelRange = "unit") -> Tensor:
    x = torch.rand(NUM, *SHAPE, generator=torch.Generator().manual_seed(1))
    return x if pixel_range == "unit" else 2 * x - 1


def whole(x: Tensor | None = None) -> Batch:
    return Batch(images=images() if x is None else x, labels=None)


def noise(index: int = 5, rows: slice | None = None, num: int = NUM) -> Noise:
    return Noise(3, index, num, rows or slice(0, num))


def filled(vq: VqVae) -> Codebook:
    """Fill the codebook with what the first batch gives, as training does."""
    vq.loss("reconstruction", whole(), noise())
    codebook = vq.nets["codebook"]
    assert isinstance(codebook, Codebook)
    return codebook


def book(
    num: int = CODES, size: int = SIZE, decay: float = 0.9, dead_below: float = 0.2, revive: bool = True
) -> Codebook:
    return Codebook(num, size, decay=decay, dead_below=dead_below, revive=revive)


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


# --- the codebook ------------------------------------------------------------------------------------------------


@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 30), st.integers(0, 2**32))
def test_the_nearest_code_is_the_nearest(num: int, size: int, vectors: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codebook = book(num, size)
    codebook.vectors.copy_(torch.randn(num, size, generator=generator))
    x = 3 * torch.randn(vectors, size, generator=generator)
    for vector, index in zip(x, codebook.nearest(x).tolist(), strict=True):
        distances = [(vector - code).square().sum().item() for code in codebook.vectors]
        assert distances[index] == pytest.approx(min(distances), abs=1e-4)


def test_a_lookup_gives_the_vectors() -> None:
    codebook = book(4, 2)
    codebook.vectors.copy_(torch.arange(8.0).view(4, 2))
    assert codebook(torch.tensor([3, 0, 3])).tolist() == [[6, 7], [0, 1], [6, 7]]


@given(st.floats(0, 0.99), st.integers(0, 2**32))
def test_codes_follow_the_means_of_their_vectors(decay: float, seed: int) -> None:
    """Against appendix A.1, equations 6 to 8, one vector at a time."""
    generator = torch.Generator().manual_seed(seed)
    codebook = book(4, 2, decay=decay)
    codebook.vectors.copy_(torch.randn(4, 2, generator=generator))
    codebook.counts.fill_(0.5)
    codebook.sums.copy_(0.5 * codebook.vectors)
    N, m = [0.5] * 4, (0.5 * codebook.vectors).tolist()
    for _ in range(3):
        x = torch.randn(6, 2, generator=generator)
        indices = torch.randint(0, 3, (6,), generator=generator)  # nothing chooses the last code
        codebook.follow(x, indices, whole(torch.zeros(2, 1, 1, 1)))
        for code in range(4):
            chosen = [vector for vector, index in zip(x.tolist(), indices.tolist(), strict=True) if index == code]
            N[code] = decay * N[code] + (1 - decay) * len(chosen)
            m[code] = [
                decay * m[code][axis] + (1 - decay) * sum(vector[axis] for vector in chosen) for axis in range(2)
            ]
        for code in range(4):
            assert codebook.counts[code].item() == pytest.approx(N[code], rel=1e-4, abs=1e-11)
            if N[code] > 1e-6:
                expected = [value / N[code] for value in m[code]]
                assert codebook.vectors[code].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_codes_follow_by_hand() -> None:
    codebook = book(2, 1, decay=0.75)
    codebook.vectors.copy_(torch.tensor([[1.0], [5.0]]))
    codebook.counts.copy_(torch.tensor([2.0, 1.0]))
    codebook.sums.copy_(torch.tensor([[2.0], [5.0]]))
    codebook.follow(torch.tensor([[3.0], [5.0]]), torch.tensor([0, 0]), whole(torch.zeros(2, 1, 1, 1)))
    assert codebook.counts.tolist() == [2.0, 0.75]
    assert codebook.sums.tolist() == [[3.5], [3.75]]
    assert codebook.vectors.tolist() == [[1.75], [5.0]]


def test_a_code_that_is_never_chosen_again_stays_where_it_was() -> None:
    codebook = book(2, 1, decay=0.1, revive=False)
    x = torch.tensor([[3.0]])
    one = whole(torch.zeros(1, 1, 1, 1))
    codebook.restart(x, one, noise(num=1))
    codebook.vectors[1] = 7.0
    codebook.sums[1] = 7.0 * codebook.counts[1]
    for _ in range(100):
        codebook.follow(x, torch.tensor([0]), one)
    assert codebook.vectors.tolist() == [[3.0], [pytest.approx(7.0)]]
    assert codebook.counts[1] > 0
    codebook.follow(torch.tensor([[9.0]]), torch.tensor([1]), one)
    assert codebook.vectors[1].item() == pytest.approx(9.0)


def test_dead_codes_move_to_vectors_of_the_batch_and_living_ones_stay() -> None:
    codebook = book(4, 2, dead_below=0.2)
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    before = 50 + torch.arange(8.0).view(4, 2)
    codebook.vectors.copy_(before)
    # 10 vectors for 4 codes: used alike each has 2.5, and is dead below 0.5.
    codebook.counts.copy_(torch.tensor([0.0, 0.49, 0.5, 9.0]))
    codebook.sums.copy_(codebook.counts[:, None] * codebook.vectors)
    codebook.restart(x, whole(torch.zeros(5, 1, 1, 1)), noise(num=5))
    assert codebook.counts.tolist() == [0.5, 0.5, 0.5, 9.0]
    assert torch.equal(codebook.vectors[2:], before[2:])
    for vector in codebook.vectors[:2]:
        assert (vector == x).all(1).any()
    torch.testing.assert_close(codebook.sums, codebook.counts[:, None] * codebook.vectors)


def test_without_revival_only_codes_that_were_never_filled_move() -> None:
    codebook = book(3, 1, dead_below=0.5, revive=False)
    codebook.vectors.fill_(50.0)
    codebook.counts.copy_(torch.tensor([0.0, 1e-6, 3.0]))
    codebook.restart(torch.tensor([[1.0], [1.0], [1.0]]), whole(torch.zeros(3, 1, 1, 1)), noise(num=3))
    assert codebook.vectors.flatten().tolist() == [1.0, 50.0, 50.0]


def test_the_vectors_that_dead_codes_move_to_come_from_all_images_alike() -> None:
    codebook = book(2000, 1)
    x = torch.arange(40.0)[:, None]
    codebook.restart(x, whole(), noise())
    counts = codebook.vectors.flatten().long().bincount(minlength=40)
    assert counts.min() > 20
    assert counts.max() < 90
    again = book(2000, 1)
    again.restart(x, whole(), noise(index=6))
    assert not torch.equal(again.vectors, codebook.vectors)


def test_use_and_perplexity_by_hand() -> None:
    codebook = book(4, 1, dead_below=0.1)
    codebook.counts.copy_(torch.tensor([4.0, 4.0, 0.0, 0.0]))
    assert codebook.usage().item() == 0.5
    assert codebook.perplexity().item() == pytest.approx(2)
    codebook.counts.fill_(3.0)
    assert codebook.usage().item() == 1
    assert codebook.perplexity().item() == pytest.approx(4)
    codebook.counts.copy_(torch.tensor([2.0, 1.0, 1.0, 0.0]))
    assert codebook.perplexity().item() == pytest.approx(2**1.5)
    # On average 3, so one that was just moved begins at 0.3 and counts as used from 0.6.
    codebook.counts.copy_(torch.tensor([5.4, 5.41, 0.59, 0.6]))
    assert codebook.usage().item() == 0.75


# --- the objective -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixel_range", ["unit", "symmetric"])
def test_the_loss_is_the_error_and_the_commitment(pixel_range: PixelRange) -> None:
    vq, x = built(pixel_range, commitment=0.5), images(pixel_range)
    codebook = filled(vq).eval()
    loss, told = vq.loss("reconstruction", whole(x), noise())
    z = vq.nets["encoder"](x)
    assert z.shape == (NUM, SIZE, 7, 7)
    codes, distance = torch.empty_like(z), 0.0
    for n in range(NUM):
        for i in range(7):
            for j in range(7):
                distances = [(code - z[n, :, i, j]).square().sum().item() for code in codebook.vectors]
                distance += min(distances)
                codes[n, :, i, j] = codebook.vectors[distances.index(min(distances))]
    out = vq.nets["decoder"](codes)
    y = (out.sigmoid() if pixel_range == "unit" else out.tanh()).detach()
    error = (to_unit(x, pixel_range) - to_unit(y, pixel_range)).square().mean((1, 2, 3))
    torch.testing.assert_close(told["loss/reconstruction"].detach(), error)
    assert told["loss/commitment"].mean().item() == pytest.approx(distance / z.numel(), rel=1e-4)
    assert loss.item() == pytest.approx(error.mean().item() + 0.5 * distance / z.numel(), rel=1e-4)
    assert told["loss/commitment"].shape == (NUM,)
    assert told["codes/usage"].ndim == told["codes/perplexity"].ndim == 0


def test_the_gradient_passes_the_choice_as_if_it_were_not_there() -> None:
    vq, x = built(commitment=0.0), images()
    filled(vq).eval()
    encoder = list(vq.nets["encoder"].parameters())
    loss, _ = vq.loss("reconstruction", whole(x), noise())
    found = torch.autograd.grad(loss, encoder)
    # What the decoder would have its codes be, handed to the encoder's map.
    with torch.no_grad():
        codes = vq.encode(x).view(NUM, SIZE, 7, 7)
    codes.requires_grad_()
    error = (torch.sigmoid(vq.nets["decoder"](codes)) - x).square().mean()
    (wish,) = torch.autograd.grad(error, codes)
    expected = torch.autograd.grad(vq.nets["encoder"](x), encoder, grad_outputs=wish)
    assert wish.abs().max() > 1e-6
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-8)


def test_the_commitment_draws_the_encoder_to_the_codes_and_nothing_else() -> None:
    vq, x = built(commitment=1.0), images()
    codebook = filled(vq).eval()
    encoder = list(vq.nets["encoder"].parameters())
    both, _ = vq.loss("reconstruction", whole(x), noise())
    vq._commitment = 0.0
    alone, _ = vq.loss("reconstruction", whole(x), noise())
    found = [
        a - b for a, b in zip(torch.autograd.grad(both, encoder), torch.autograd.grad(alone, encoder), strict=True)
    ]
    z = vq.nets["encoder"](x)
    codes = vq.encode(x).view_as(z).detach()
    expected = torch.autograd.grad((z - codes).square().mean(), encoder)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)
    assert not list(codebook.parameters())


def test_training_moves_the_codebook_and_looking_does_not() -> None:
    vq = built()
    empty = vq.nets["codebook"]
    assert not any(buffer.any() for buffer in empty.buffers())
    codebook = filled(vq)
    assert (codebook.counts > 0).all()
    before = [buffer.clone() for buffer in codebook.buffers()]
    with inference(vq.nets):
        vq.loss("reconstruction", whole(), noise())
        vq.decode(vq.encode(images()))
        vq.code_indices(images())
    assert all(torch.equal(buffer, kept) for buffer, kept in zip(codebook.buffers(), before, strict=True))
    vq.loss("reconstruction", whole(), noise(index=6))
    assert not any(torch.equal(buffer, kept) for buffer, kept in zip(codebook.buffers(), before, strict=True))


def test_the_codes_of_an_image_say_what_is_decoded() -> None:
    vq, x = built(), images()
    codebook = filled(vq).eval()
    assert isinstance(vq, Reconstructs)
    assert isinstance(vq, HasCodebook)
    assert not isinstance(vq, Generates)
    indices = vq.code_indices(x)
    assert indices.shape == (NUM, TOKENS)
    assert indices.dtype == torch.int64
    assert vq.num_codes == CODES
    assert indices.min() >= 0
    assert indices.max() < CODES
    assert len(set(indices.flatten().tolist())) > 4
    codes = vq.encode(x)
    assert codes.shape == (NUM, SIZE * TOKENS)
    for token in range(TOKENS):
        assert torch.equal(codes.view(NUM, SIZE, TOKENS)[:, :, token], codebook.vectors[indices[:, token]])
    error = (vq.decode(codes) - x).square().flatten(1).mean(1)
    torch.testing.assert_close(error, vq.loss("reconstruction", whole(x), noise())[1]["loss/reconstruction"])


def test_three_uneven_workers_keep_the_codebook_and_the_gradient_of_one() -> None:
    alone = built(dead_below=0.5)  # so that codes move in every batch
    weights = [weight for net in alone.nets.values() for weight in net.parameters()]
    expected, moved = [], 0
    for index in range(3):
        before = alone.nets["codebook"].get_buffer("vectors").clone()
        loss, _ = alone.loss("reconstruction", whole(), noise(index))
        expected.append(torch.autograd.grad(loss, weights))
        jumps = (alone.nets["codebook"].get_buffer("vectors") - before).norm(dim=1)
        moved += int((jumps > 10 * jumps.median()).sum()) if index else 0
    assert moved

    def work(rows: slice, total: Callable[[Tensor], Tensor]) -> tuple[Codebook, list[tuple[Tensor, ...]]]:
        vq = replicas[rows.start]
        own = [weight for net in vq.nets.values() for weight in net.parameters()]
        gradients = []
        for index in range(3):
            batch = Batch(images=images()[rows], labels=None, rows=rows, size=NUM, sum=total)
            part, _ = vq.loss("reconstruction", batch, noise(index, rows))
            engine_weight = (rows.stop - rows.start) * WORKERS / NUM
            gradients.append(torch.autograd.grad(part * engine_weight, own))
        codebook = vq.nets["codebook"]
        assert isinstance(codebook, Codebook)
        return codebook, gradients

    replicas = {World(rank, WORKERS, CPU).slice(NUM).start: built(dead_below=0.5) for rank in range(WORKERS)}
    found = on_workers(work)
    one = alone.nets["codebook"]
    for codebook, _ in found:
        for name, buffer in codebook.named_buffers():
            torch.testing.assert_close(buffer, one.get_buffer(name), rtol=1e-4, atol=1e-5)
            assert torch.equal(buffer, found[0][0].get_buffer(name))
    for index in range(3):
        for single, *parts in zip(expected[index], *(gradients[index] for _, gradients in found), strict=True):
            torch.testing.assert_close(torch.stack(parts).mean(0), single, rtol=1e-3, atol=1e-6)


def test_it_declares_where_the_latent_lies() -> None:
    small, large = built(), built(size=SIZE + 2)
    declared = large.latent_axes()
    for name, net in small.nets.items():
        for key, tensor in net.state_dict().items():
            longer = list(tensor.shape)
            if f"{name}.{key}" in declared:
                assert declared[f"{name}.{key}"].parts == 1
                longer[declared[f"{name}.{key}"].axis] += 2
            assert list(large.nets[name].state_dict()[key].shape) == longer
    assert {"codebook.vectors", "codebook.sums"} < declared.keys()
    assert len(declared) == 5


def test_it_learns_and_uses_its_codes() -> None:
    config = configured(dead_below=0.1)
    vq = built(dead_below=0.1)
    engine = Engine(vq, State.fresh(vq, config), config, World.local("cpu"))
    x = torch.zeros(NUM, *SHAPE)
    for index, image in enumerate(x):
        image[:, :, 2 * index : 2 * index + 6] = 1
    told = [engine.step(whole(x), noise(step)) for step in range(60)]
    assert told[-1]["loss/reconstruction"].mean() < 0.3 * told[0]["loss/reconstruction"].mean()
    assert told[-1]["codes/usage"] > 0.4
    assert 2 < told[-1]["codes/perplexity"] <= CODES


def test_a_resumed_run_has_the_same_codebook(
    small_data: Path,
    tmp_path: Path,
    finish: Callable[..., object],
    newest: Callable[[Run], Checkpoint],
    differing: Callable[..., list[str]],
) -> None:
    values = {
        **configured().model_dump(mode="json"),
        "batch": 20,
        "duration_samples": 160,
        "ema": {"half_life_samples": 100},
        "report": {"every_samples": 40, "images_every_samples": 0},
        "checkpoint": {"every_samples": 0},
    }
    config = build_config(values)
    straight, stopped = (Run.create(tmp_path / name, config, small_data) for name in ("straight", "stopped"))
    finish(straight)
    finish(stopped, stop_after=3)
    first = newest(stopped)
    assert first.samples < 160
    finish(stopped, first)
    tensors = newest(straight).tensors()
    assert differing(tensors, newest(stopped).tensors()) == []
    assert tensors["nets/codebook.vectors"].equal(tensors["ema/codebook.vectors"])
    assert differing(tensors, first.tensors()) != []


# --- what is refused, and what is warned of ----------------------------------------------------------------------


def test_a_codebook_larger_than_a_batch_can_fill_is_warned_of() -> None:
    assert built().cautions(1) == []
    (caution,) = built(num_codes=512).cautions(4)
    assert caution == (
        "objective.num_codes=512 is more than the 4 x 7 x 7 = 196 codes that a batch can use, so 316 or more lie idle"
        " in each; use batch >= 11, or objective.num_codes <= 196, and watch codes/usage"
    )
    assert math.ceil(512 / TOKENS) == 11
    assert built(num_codes=512).cautions(11) == []


def test_networks_without_a_map_are_refused() -> None:
    config = build_config({"objective": {"name": "vq_vae"}, "nets": {"name": "mlp"}})
    with pytest.raises(ConfigError, match=r"nets.name=mlp has no map of codes; use nets.name=conv"):
        build(config.objective, config.nets, SHAPE, "unit")


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("num_codes", 1, "should be greater than or equal to 2"),
        ("decay", 1.0, "should be less than 1"),
        ("dead_below", 0, "should be greater than 0"),
        ("commitment", -0.1, "should be greater than or equal to 0"),
    ],
)
def test_settings_out_of_range_are_refused(key: str, value: float, rule: str) -> None:
    with pytest.raises(ConfigError, match=rf"objective.{key}={value}: {rule}"):
        configured(**{key: value})  # type: ignore[arg-type]
