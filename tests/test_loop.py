import shutil
import threading
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from shoal import worker_stats
from shoal.checkpoint import Checkpoint, directory_name
from shoal.config import RunConfig
from shoal.data import DataSet, Stream
from shoal.divergence import refuse_divergence
from shoal.errors import ConfigError, DataError, RunError, ShoalError
from shoal.loop import Tick, check, train
from shoal.noise import Noise
from shoal.objectives import Autoencoder, Batch, Scalars, register
from shoal.objectives.autoencoder import AutoencoderConfig
from shoal.pixels import to_float
from shoal.run import Run
from shoal.state import State, build_objective
from shoal.storage.location import Location
from shoal.world import World

Tiny = Callable[..., RunConfig]
MakeRun = Callable[..., Run]
Finish = Callable[..., list[Tick]]
Newest = Callable[[Run], Checkpoint]
Differing = Callable[..., list[str]]
Measures = Callable[[Any], dict[str, Any]]


def clock(ticks: list[Tick]) -> list[int]:
    return [tick.samples for tick in ticks]


# --- ticks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "every", "duration"), [(20, 40, 200), (24, 50, 200), (7, 30, 100), (50, 20, 200)])
def test_ticks_come_at_the_first_sample_at_or_past_each_multiple(
    make_run: MakeRun, finish: Finish, batch: int, every: int, duration: int
) -> None:
    run = make_run(
        "autoencoder",
        f"batch={batch}",
        f"report.every_samples={every}",
        f"duration_samples={duration}",
        "checkpoint.every_samples=0",
    )
    end = -(-duration // batch) * batch
    expected = {-(-multiple // batch) * batch for multiple in range(every, end + 1, every)} | {end}
    assert clock(finish(run)) == sorted(expected)


def test_checkpoints_and_pictures_have_clocks_of_their_own(make_run: MakeRun, finish: Finish) -> None:
    run = make_run(
        "gan",
        "report.every_samples=1000",
        "report.images_every_samples=60",
        "checkpoint.every_samples=70",
        "duration_samples=190",
    )
    ticks = finish(run)
    assert [tick.samples for tick in ticks if tick.save] == [80, 140, 200]
    assert [tick.samples for tick in ticks if tick.images] == [60, 120, 180, 200]
    assert clock(ticks) == [60, 80, 120, 140, 180, 200]


@pytest.mark.parametrize("overrides", [["checkpoint.every_samples=0"], ["checkpoint.every_samples=1000"]])
def test_a_final_checkpoint_is_always_written(
    make_run: MakeRun, finish: Finish, newest: Newest, overrides: list[str]
) -> None:
    run = make_run("autoencoder", *overrides)
    ticks = finish(run)
    assert [tick.samples for tick in ticks if tick.save] == [200]
    found = newest(run)
    assert (found.samples, found.batches, found.shape) == (200, 10, (1, 28, 28))
    assert found.config == run.config.model_dump(mode="json")
    assert found.stream["position"] == 200


def test_no_pictures_when_none_are_asked_for(make_run: MakeRun, finish: Finish) -> None:
    assert not any(tick.images for tick in finish(make_run("gan", "report.images_every_samples=0")))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("autoencoder", {"loss/reconstruction", "optim/lr", "speed/samples_per_sec", "speed/data_wait_share"}),
        (
            "gan",
            {
                "loss/discriminator",
                "loss/generator",
                "score/real",
                "score/fake",
                "optim/lr_discriminator",
                "optim/lr_generator",
                "speed/samples_per_sec",
                "speed/data_wait_share",
            },
        ),
    ],
)
def test_every_tick_tells_every_measure(make_run: MakeRun, finish: Finish, kind: str, names: set[str]) -> None:
    for tick in finish(make_run(kind)):
        assert set(tick.scalars) == names
        assert tick.scalars["speed/samples_per_sec"] > 0


def test_a_tick_tells_the_mean_since_the_last_one(make_run: MakeRun, finish: Finish) -> None:
    each = finish(make_run("autoencoder", "report.every_samples=20", "checkpoint.every_samples=0"))
    some = finish(make_run("autoencoder", "report.every_samples=60", "checkpoint.every_samples=0"))
    losses = [tick.scalars["loss/reconstruction"] for tick in each]
    assert clock(some) == [60, 120, 180, 200]
    expected = [np.mean(losses[:3]), np.mean(losses[3:6]), np.mean(losses[6:9]), losses[9]]
    assert [tick.scalars["loss/reconstruction"] for tick in some] == pytest.approx(expected)


def test_the_speed_is_that_of_training_not_of_whoever_listens(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0

    def step_takes_two_seconds() -> bool:
        nonlocal now
        now += 2
        return False

    monkeypatch.setattr(worker_stats, "time", SimpleNamespace(perf_counter=lambda: now))
    run = make_run("autoencoder", "report.every_samples=40")
    for tick in train(run, World.local("cpu"), should_stop=step_takes_two_seconds):
        assert tick.scalars["speed/samples_per_sec"] == 10
        now += 300


def test_an_autoencoder_learns(make_run: MakeRun, finish: Finish) -> None:
    ticks = finish(make_run("autoencoder", "duration_samples=2000", "report.every_samples=200"))
    losses = [tick.scalars["loss/reconstruction"] for tick in ticks]
    assert losses[-1] < losses[0] / 2


# --- what is learned from -------------------------------------------------------------------------------------------


class SpyConfig(AutoencoderConfig):
    name: Literal["spy"] = "spy"  # type: ignore[assignment]


class Spy(Autoencoder):
    """Keeps every image and label that it is given."""

    Config = SpyConfig
    images: ClassVar[list[Tensor]] = []
    labels: ClassVar[list[Tensor]] = []

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Scalars]:
        assert batch.labels is not None
        self.images.append(batch.images.clone())
        self.labels.append(batch.labels.clone())
        return super().loss(phase, batch, noise)


@pytest.fixture
def spy(registry: None) -> type[Spy]:
    register(Spy)
    Spy.images, Spy.labels = [], []
    return Spy


def test_batches_cross_epochs_and_show_each_image_once_in_each(
    make_run: MakeRun, finish: Finish, small_data: Path, spy: type[Spy]
) -> None:
    finish(make_run("autoencoder", "objective.name=spy", "duration_samples=480"))
    assert [len(images) for images in spy.images] == [20] * 24
    data = DataSet.open(small_data)
    labels = data.labels("train")
    assert labels is not None
    whole = Counter(
        (image.tobytes(), int(label)) for image, label in zip(data.rows("train", 0, 96), labels, strict=True)
    )
    seen = [
        ((image * 255).round().to(torch.uint8).numpy().tobytes(), int(label))
        for image, label in zip(torch.cat(spy.images), torch.cat(spy.labels), strict=True)
    ]
    for epoch in range(5):
        assert Counter(seen[epoch * 96 : epoch * 96 + 96]) == whole
    assert seen[:96] != seen[96:192]


def test_another_split_can_be_learned_from(make_run: MakeRun, finish: Finish, small_data: Path, spy: type[Spy]) -> None:
    finish(make_run("autoencoder", "objective.name=spy", "data.split=test", "batch=16", "duration_samples=32"))
    seen = {(image * 255).round().to(torch.uint8).numpy().tobytes() for image in torch.cat(spy.images)}
    assert seen == {image.tobytes() for image in DataSet.open(small_data).rows("test", 0, 32)}


def test_the_loop_is_plain_pytorch(
    make_run: MakeRun, finish: Finish, newest: Newest, small_data: Path, tiny: Tiny
) -> None:
    run = make_run("autoencoder")
    ticks = finish(run)
    config = tiny("autoencoder")
    plain = build_objective(config, (1, 28, 28))
    encoder, decoder = plain.nets["encoder"], plain.nets["decoder"]
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], config.optim.lr)
    losses = []
    with Stream(
        DataSet.open(small_data), split="train", batch=20, seed=0, rows=slice(0, 20), shuffle_window_blocks=16
    ) as stream:
        for raw in islice(stream, 10):
            x = to_float(raw.images, "unit")
            loss = mse_loss(torch.sigmoid(decoder(encoder(x))), x)
            losses.append(loss.item())
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    assert [tick.scalars["loss/reconstruction"] for tick in ticks] == pytest.approx(losses, rel=1e-4)
    tensors = newest(run).tensors()
    for name, net in (("encoder", encoder), ("decoder", decoder)):
        for key, weight in net.state_dict().items():
            torch.testing.assert_close(tensors[f"nets/{name}.{key}"], weight, rtol=1e-4, atol=1e-5)


# --- stopping and going on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_after", [1, 3, 10])
def test_a_stop_gives_a_last_tick_at_that_very_sample_with_a_checkpoint(
    make_run: MakeRun, finish: Finish, newest: Newest, stop_after: int
) -> None:
    run = make_run(
        "gan", "report.every_samples=1000", "report.images_every_samples=1000", "checkpoint.every_samples=1000"
    )
    ticks = finish(run, stop_after=stop_after)
    assert clock(ticks) == [20 * stop_after]
    assert ticks[0].save is not None
    assert "images/samples" in ticks[0].images
    assert newest(run).samples == 20 * stop_after


VARIANTS = {
    "autoencoder": ("autoencoder", []),
    "gan": ("gan", []),
    "sgd": ("autoencoder", ["optim.name=sgd", "optim.lr=0.5", "optim.schedule=cosine", "optim.warmup_samples=60"]),
    "adamw": ("gan", ["optim.name=adamw", "optim.weight_decay=0.1", "optim.clip=0.1", "optim.schedule=linear"]),
    "no average": ("gan", ["ema.half_life_samples=0", "objective.loss=minimax"]),
    "batch norm": ("gan", ["nets.name=conv", "nets.latent=5", "nets.width=2", "nets.norm=batch"]),
    "group norm": ("autoencoder", ["nets.name=conv", "nets.latent=4", "nets.width=2", "nets.norm=group"]),
}


@pytest.fixture(scope="session")
def never_stopped() -> dict[str, tuple[list[dict[str, Any]], dict[str, Tensor], dict[str, Any]]]:
    return {}


@pytest.mark.parametrize("stops", [[1], [3], [5], [9], [2, 1, 4]], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_stop_and_resume_equals_never_having_stopped(
    make_run: MakeRun,
    finish: Finish,
    newest: Newest,
    differing: Differing,
    measures: Measures,
    never_stopped: dict[str, Any],
    variant: str,
    stops: list[int],
) -> None:
    kind, overrides = VARIANTS[variant]

    def told(ticks: list[Tick]) -> list[dict[str, Any]]:
        return [{"samples": tick.samples, **measures(tick.scalars)} for tick in ticks]

    if variant not in never_stopped:
        straight = make_run(kind, *overrides)
        ticks = told(finish(straight))
        never_stopped[variant] = ticks, newest(straight).tensors(), newest(straight).stream
    run = make_run(kind, *overrides)
    torch.manual_seed(1234)
    rows = told(finish(run, stop_after=stops[0]))
    for number, more in enumerate([*stops[1:], None]):
        assert newest(run).samples == 20 * sum(stops[: number + 1])
        torch.manual_seed(number)
        rows += told(finish(Run.open(run.path), resume=newest(run), stop_after=more))
    expected_rows, expected_tensors, expected_stream = never_stopped[variant]
    assert rows == expected_rows
    assert differing(newest(run).tensors(), expected_tensors) == []
    assert newest(run).stream == expected_stream
    groups = {name.split("/")[0] for name in expected_tensors}
    assert groups == {"nets", "optim"} | (set() if variant == "no average" else {"ema"})


def test_resume_from_any_checkpoint_in_the_middle(
    make_run: MakeRun, finish: Finish, newest: Newest, differing: Differing
) -> None:
    run = make_run("gan", "checkpoint.every_samples=60", "checkpoint.keep=9")
    finish(run)
    expected = newest(run).tensors()
    shutil.rmtree(run.checkpoints / directory_name(200))
    shutil.rmtree(run.checkpoints / directory_name(180))
    assert newest(run).samples == 120
    ticks = finish(run, resume=newest(run))
    assert clock(ticks) == [140, 160, 180, 200]
    assert differing(newest(run).tensors(), expected) == []


def test_a_finished_run_has_nothing_left_to_do(make_run: MakeRun, finish: Finish, newest: Newest) -> None:
    run = make_run()
    finish(run)
    assert finish(run, resume=newest(run)) == []


def test_a_finished_run_goes_on_when_it_may_take_longer(
    make_run: MakeRun, finish: Finish, newest: Newest, differing: Differing
) -> None:
    short, long = make_run("gan"), make_run("gan", "duration_samples=280")
    finish(short)
    finish(short.resumed(["duration_samples=280"]), resume=newest(short))
    finish(long)
    assert newest(short).samples == 280
    assert differing(newest(short).tensors(), newest(long).tensors()) == []


def test_what_a_consumer_draws_changes_nothing(
    make_run: MakeRun, finish: Finish, newest: Newest, differing: Differing
) -> None:
    quiet, noisy = make_run("gan"), make_run("gan")
    finish(quiet)
    for tick in train(noisy, World.local("cpu")):
        torch.randn(tick.samples)
        if tick.save:
            tick.save(noisy.checkpoints / directory_name(tick.samples))
    assert differing(newest(noisy).tensors(), newest(quiet).tensors()) == []


def of_global_numpy() -> tuple[bytes, int]:
    state = np.random.get_state(legacy=False)["state"]
    return state["key"].tobytes(), state["pos"]


@pytest.mark.parametrize("kind", ["autoencoder", "gan"])
def test_the_loop_leaves_the_global_generators_alone(make_run: MakeRun, finish: Finish, kind: str) -> None:
    run = make_run(kind, "report.images_every_samples=20")
    torch.manual_seed(5)
    before, of_numpy = torch.get_rng_state(), of_global_numpy()
    finish(run)
    assert torch.equal(torch.get_rng_state(), before)
    assert of_global_numpy() == of_numpy


def test_pictures_change_nothing(make_run: MakeRun, finish: Finish, newest: Newest, differing: Differing) -> None:
    conv = ["nets.name=conv", "nets.latent=5", "nets.width=2", "nets.norm=batch"]
    plain = make_run("gan", *conv)
    shown = make_run("gan", *conv, "report.images_every_samples=20")
    finish(plain)
    assert all(tick.images for tick in finish(shown))
    assert differing(newest(plain).tensors(), newest(shown).tensors()) == []


def test_other_seeds_learn_something_else(
    make_run: MakeRun, finish: Finish, newest: Newest, differing: Differing
) -> None:
    runs = [make_run("autoencoder", f"seed={seed}", "duration_samples=20") for seed in (0, 0, 1)]
    for run in runs:
        finish(run)
    one, same, other = (newest(run).tensors() for run in runs)
    assert differing(one, same) == []
    assert len(differing(one, other)) > len(one) / 2


def test_a_consumer_that_leaves_takes_the_reader_along(make_run: MakeRun) -> None:
    before = threading.active_count()
    ticks = train(make_run(), World.local("cpu"))
    next(ticks)
    assert threading.active_count() == before + 1
    ticks.close()  # type: ignore[attr-defined]  # train is a generator
    assert threading.active_count() == before


# --- what is refused ----------------------------------------------------------------------------------------------


def test_more_workers_than_images_in_a_batch_are_refused_with_the_arithmetic(tiny: Tiny, small_data: Path) -> None:
    data = DataSet.open(small_data)
    check(tiny("autoencoder", "batch=4"), data, 4)
    with pytest.raises(ConfigError) as caught:
        check(tiny("autoencoder", "batch=4"), data, 5)
    assert str(caught.value) == (
        "batch 4 cannot feed 5 workers (one image each at least); use batch >= 5, or at most 4 workers"
    )


def test_images_that_the_networks_cannot_make_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    from shoal.data.write import write_dataset

    images = np.zeros((24, 1, 30, 30), np.uint8)
    write_dataset(tmp_path / "odd", {"train": [(images, None)]}, shape=(1, 30, 30), class_names=None, source="zeros")
    data = DataSet.open(tmp_path / "odd")
    check(tiny("autoencoder"), data, 1)
    with pytest.raises(ConfigError, match=r"nets.name=conv cannot make images of 1x30x30"):
        check(tiny("autoencoder", "nets.name=conv"), data, 1)


def test_a_split_that_is_not_there_is_refused(tiny: Tiny, small_data: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'trian' \(did you mean 'train'\?\)"):
        check(tiny("autoencoder", "data.split=trian"), DataSet.open(small_data), 1)


def test_checking_builds_no_weights(tiny: Tiny, small_data: Path) -> None:
    before = torch.get_rng_state()
    check(tiny("autoencoder", "nets.hidden=[1000000000]"), DataSet.open(small_data), 1)  # 3 TB of them
    assert torch.equal(torch.get_rng_state(), before)


def test_a_resume_with_other_data_is_refused_with_both_fingerprints(
    make_run: MakeRun, finish: Finish, newest: Newest, small_data: Path, tmp_path: Path
) -> None:
    from shoal.data.write import write_dataset

    original = DataSet.open(small_data)
    images = original.rows("train", 0, 96).copy()
    images[50, 0, 3, 3] ^= 1
    write_dataset(
        tmp_path / "other",
        {"train": [(images, original.labels("train"))]},
        shape=(1, 28, 28),
        class_names=original.class_names,
        source="painted",
        rows_per_block=16,
    )
    run = make_run()
    finish(run, stop_after=2)
    other = Run(run.path, run.config, Location.parse(tmp_path / "other"))
    with pytest.raises(DataError) as caught:
        finish(other, resume=newest(run))
    assert original.fingerprint[:12] in str(caught.value)
    assert DataSet.open(tmp_path / "other").fingerprint[:12] in str(caught.value)


@pytest.mark.parametrize(("kind", "name"), [("autoencoder", "loss/reconstruction"), ("gan", "loss/discriminator")])
def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(
    make_run: MakeRun, finish: Finish, kind: str, name: str
) -> None:
    run = make_run(kind, "optim.lr=1e30", "report.every_samples=60", "checkpoint.every_samples=60")
    with pytest.raises(RunError, match=rf"{name} is (nan|inf|-inf) at sample 60; the run has diverged. Lower optim.lr"):
        finish(run)
    assert not run.checkpoints.exists()


def test_a_run_that_diverged_goes_on_from_before_it_with_a_lower_rate(
    make_run: MakeRun, finish: Finish, newest: Newest
) -> None:
    run = make_run("autoencoder", "checkpoint.every_samples=60")
    finish(run, stop_after=3)
    with pytest.raises(RunError, match="diverged"):
        finish(run.resumed(["optim.lr=1e30"]), resume=newest(run))
    ticks = finish(run.resumed(["optim.lr=1e-3"]), resume=newest(run))
    assert clock(ticks) == [80, 100, 120, 140, 160, 180, 200]


# --- data that was damaged ------------------------------------------------------------------------------------------

ONE_BLOCK = "data.window_blocks=1"  # rows are shuffled within their block, so that blocks are read one after the other


@pytest.fixture
def copy_of_data(small_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_data, tmp_path / "copy"))


def damage(path: Path, block: int) -> str:
    """Change a byte of a block of the training images; return the name of its shard."""
    data = DataSet.open(path)
    row = data.rows("train", 16 * block + 3, 16 * block + 4).tobytes()
    shard = path / f"shard-{block // 3:05d}.arrow"
    content = bytearray(shard.read_bytes())
    content[content.index(row) + 5] ^= 1
    shard.write_bytes(content)
    return shard.name


def first_batch_of(path: Path, block: int, batch: int) -> int:
    with Stream(
        DataSet.open(path), split="train", batch=batch, seed=0, rows=slice(0, batch), shuffle_window_blocks=1
    ) as stream:
        for raw in stream:
            if (raw.ids // 16 == block).any():
                return raw.index
    raise AssertionError("a stream has no end")


@pytest.mark.parametrize("block", range(6))
def test_a_damaged_block_ends_the_run_after_the_last_good_step(
    make_run: MakeRun,
    finish: Finish,
    newest: Newest,
    differing: Differing,
    small_data: Path,
    copy_of_data: Path,
    block: int,
) -> None:
    last_good = first_batch_of(copy_of_data, block, 20) * 20
    run = make_run("autoencoder", ONE_BLOCK, "report.every_samples=1000", data=copy_of_data)
    shard = damage(copy_of_data, block)
    ticks: list[Tick] = []
    with pytest.raises(DataError, match=rf"block {block % 3} of {shard} \(rows {16 * block} to {16 * block + 15}\)"):
        finish(run, into=ticks)
    if last_good == 0:
        assert ticks == []
        return
    assert ticks[-1].samples == last_good
    assert ticks[-1].save is not None
    shutil.copyfile(small_data / shard, copy_of_data / shard)
    finish(run, resume=newest(run))
    straight = make_run("autoencoder", ONE_BLOCK, "report.every_samples=1000")
    finish(straight)
    assert differing(newest(run).tensors(), newest(straight).tensors()) == []


def test_a_run_that_ends_before_the_damage_is_not_disturbed(
    make_run: MakeRun, finish: Finish, copy_of_data: Path
) -> None:
    block = max(range(6), key=lambda block: first_batch_of(copy_of_data, block, 20))
    needed = first_batch_of(copy_of_data, block, 20) * 20
    damage(copy_of_data, block)
    run = make_run("autoencoder", ONE_BLOCK, f"duration_samples={needed}", data=copy_of_data)
    assert clock(finish(run))[-1] == needed


def test_a_users_error_out_of_should_stop_comes_after_a_tick_with_a_checkpoint(make_run: MakeRun) -> None:
    asked = []

    def fail() -> bool:
        asked.append(1)
        if len(asked) == 3:
            raise ShoalError("no room")
        return False

    ticks: list[Tick] = []
    with pytest.raises(ShoalError, match="no room"):
        ticks.extend(train(make_run(), World.local("cpu"), should_stop=fail))
    assert clock(ticks) == [20, 40, 60]
    assert ticks[-1].save is not None


def test_weights_that_are_no_numbers_are_never_saved_even_where_the_loss_still_is_one(make_run: MakeRun) -> None:
    run = make_run("autoencoder")
    objective = build_objective(run.config, (1, 28, 28))
    state = State.fresh(objective, run.config)
    refuse_divergence({"loss/reconstruction": 0.1}, state)
    with torch.no_grad():
        next(objective.nets["decoder"].parameters()).view(-1)[3] = torch.inf
    with pytest.raises(RunError, match="a weight of the decoder is not finite at sample 0"):
        refuse_divergence({"loss/reconstruction": 0.1}, state)
