"""Runs whose configuration changes on the way: what they equal, and that a stop anywhere leaves them the same."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from shoal.checkpoint import Checkpoint
from shoal.config import RunConfig, build_config
from shoal.data import DataSet
from shoal.errors import ConfigError, RunError
from shoal.loop import Tick, check, check_resume, train
from shoal.model import load_model
from shoal.objectives import Autoencoder, register
from shoal.objectives.autoencoder import AutoencoderConfig
from shoal.run import Run
from shoal.world import World

Tiny = Callable[..., RunConfig]
MakeRun = Callable[..., Run]
Finish = Callable[..., list[Tick]]
Newest = Callable[[Run], Checkpoint]
Differing = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], list[str]]

SCENARIO = Path(__file__).parent / "ranks" / "changes.py"
FAMILIES: dict[str, tuple[str, ...]] = {
    "autoencoder": ("autoencoder",),
    "vae": ("autoencoder", "objective.name=vae"),
    "gan": ("gan", "objective.r1=1.0"),
}
LATENTS = {"autoencoder": 4, "vae": 4, "gan": 5}
# Grows with the fourth step and shrinks with the eighth: 130 lies between two batches of 20.
SCHEDULE = "changes={60: {nets.latent: 9, optim.lr: 3.0e-3}, 130: {nets.latent: 3}}"
GROWN, SHRUNK = 60, 140


def latent(found: Checkpoint) -> int:
    return int(build_config(found.config).nets.latent)


# --- a learning rate -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_another_rate_from_a_sample_on_equals_going_on_from_there_with_it(
    family: str, make_run: MakeRun, finish: Finish, newest: Newest, differing: Differing
) -> None:
    plain = make_run(*FAMILIES[family])
    changing = make_run(*FAMILIES[family], "changes={100: {optim.lr: 1.0e-3}}")
    begun = make_run(*FAMILIES[family], "duration_samples=100")
    for run in (plain, changing, begun):
        finish(run)
    resumed = begun.resumed(["duration_samples=200", "optim.lr=1.0e-3"])
    finish(resumed, newest(begun))
    assert newest(changing).samples == newest(resumed).samples == 200
    assert differing(newest(changing).tensors(), newest(resumed).tensors()) == []
    assert differing(newest(changing).tensors(), newest(plain).tensors()) != []


def test_the_rate_that_is_reported_is_the_one_in_use(make_run: MakeRun, finish: Finish) -> None:
    run = make_run("autoencoder", "changes={50: {optim.lr: 1.0e-3}, 120: {optim.lr: 2.0e-3}}")
    ticks = finish(run)
    assert [tick.samples for tick in ticks] == list(range(20, 201, 20))  # no tick is lost, none comes twice
    assert [tick.scalars["optim/lr"] for tick in ticks] == pytest.approx([1e-2] * 3 + [1e-3] * 3 + [2e-3] * 4)


def test_ticks_do_not_see_a_change(make_run: MakeRun, finish: Finish) -> None:
    overrides = ["report.every_samples=80", "checkpoint.every_samples=0", "report.images_every_samples=120"]
    ticks = finish(make_run("autoencoder", *overrides, SCHEDULE))
    assert [tick.samples for tick in ticks] == [80, 120, 160, 200]
    assert [tick.samples for tick in ticks if tick.images] == [120, 200]
    assert [tick.samples for tick in ticks if tick.save] == [200]


# --- the size of the latent ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_latent_grows_and_shrinks_wherever_the_run_was_stopped(
    family: str, make_run: MakeRun, finish: Finish, newest: Newest, differing: Differing
) -> None:
    overrides = (*FAMILIES[family], "checkpoint.every_samples=0", SCHEDULE)
    straight = make_run(*overrides)
    ticks = finish(straight)
    assert [tick.samples for tick in ticks] == list(range(20, 201, 20))
    expected = newest(straight).tensors()
    groups = {name.partition("/")[0] for name in expected}
    assert groups == {"nets", "ema", "optim"}
    assert latent(newest(straight)) == 3
    model = load_model(straight.path)
    assert model.config.nets.latent == 3
    assert model.samples == 200
    images = torch.from_numpy(DataSet.open(straight.data).rows("test", 0, 5))
    shown = model.sample(5) if family == "gan" else model.reconstruct(images)
    assert shown.shape == (5, 1, 28, 28)
    assert bool(shown.isfinite().all())

    for samples in (GROWN - 20, GROWN, GROWN + 20, SHRUNK - 20, SHRUNK, SHRUNK + 20):
        run = make_run(*overrides)
        assert finish(run, stop_after=samples // 20)[-1].samples == samples
        stopped = newest(run)
        assert stopped.samples == samples
        # A checkpoint holds what was trained, not what it is about to become.
        assert latent(stopped) == (LATENTS[family] if samples <= GROWN else 9 if samples <= SHRUNK else 3)
        assert load_model(run.path).config.nets.latent == latent(stopped)
        check_resume(stopped, run.config, DataSet.open(run.data))
        finish(run, stopped)
        assert differing(newest(run).tensors(), expected) == [], samples
        assert newest(run).config == newest(straight).config


def test_a_run_that_is_stopped_at_a_change_stops_there(make_run: MakeRun, finish: Finish, newest: Newest) -> None:
    run = make_run("autoencoder", SCHEDULE)
    ticks = finish(run, stop_after=GROWN // 20)
    assert [tick.samples for tick in ticks] == [20, 40, 60]
    assert ticks[-1].save is not None
    assert newest(run).samples == GROWN


@pytest.mark.parametrize("at", [181, 199, 200, 205, 5000])
def test_a_change_that_no_step_is_left_for_is_none(
    at: int, make_run: MakeRun, finish: Finish, newest: Newest, differing: Differing
) -> None:
    plain, changing = make_run("autoencoder"), make_run("autoencoder", f"changes={{{at}: {{nets.latent: 9}}}}")
    without, with_it = finish(plain), finish(changing)
    assert [tick.samples for tick in with_it] == [tick.samples for tick in without]
    assert with_it[-1].save is not None
    assert differing(newest(changing).tensors(), newest(plain).tensors()) == []
    # It is made when the run goes on for longer.
    longer = changing.resumed(["duration_samples=240"])
    finish(longer, newest(changing))
    assert latent(newest(longer)) == (9 if at < 240 else 4)


def test_changes_before_the_first_step_are_made_by_it(make_run: MakeRun, finish: Finish, newest: Newest) -> None:
    run = make_run("autoencoder", "changes={1: {optim.lr: 1.0e-3}, 19: {nets.latent: 6}}", "duration_samples=40")
    ticks = finish(run)
    assert [tick.scalars["optim/lr"] for tick in ticks] == pytest.approx([1e-2, 1e-3])
    assert latent(newest(run)) == 6


def test_growing_keeps_what_was_learned(make_run: MakeRun, finish: Finish) -> None:
    overrides = ["duration_samples=800", "optim.lr=3.0e-3", "report.quality_every_samples=20"]
    plain = finish(make_run("autoencoder", *overrides))
    grown = finish(make_run("autoencoder", *overrides, "changes={400: {nets.latent: 12}}"))
    errors = [[tick.scalars["quality/mse"] for tick in ticks] for ticks in (plain, grown)]
    assert errors[0][:20] == errors[1][:20]
    # One step later the two have moved alike, from the same point; in the beginning they were far above it.
    assert errors[1][20] == pytest.approx(errors[0][20], rel=0.02)
    assert errors[1][20] < 0.75 * errors[1][0]
    assert errors[1][-1] < errors[1][19]


# --- what is refused -------------------------------------------------------------------------------------------------


class Picky(Autoencoder):
    """Refuses more than eight dimensions, as networks may."""

    class Config(AutoencoderConfig):
        name: Literal["picky"] = "picky"  # type: ignore[assignment]  # another objective

    def __init__(self, config: Any, nets: Any, *rest: Any, **more: Any) -> None:
        if nets.latent > 8:
            raise ConfigError(f"nets.latent={nets.latent} is more than 8; use nets.latent <= 8")
        super().__init__(config, nets, *rest, **more)


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        ("autoencoder", ["objective.name=picky", "changes={60: {nets.latent: 9}}"], r"nets\.latent=9 is more than 8"),
        (
            "autoencoder",
            ["objective.name=picky", "changes={60: {nets.latent: 8}, 80: {nets.latent: 9}}"],
            r"nets\.latent=9 is more than 8; use nets\.latent <= 8",
        ),
        ("gan", ["changes={60: {objective.conditional: true}}"], r"tensor \S+ is .*; only nets\.latent \(5 -> 5\)"),
        (
            "autoencoder",
            ["objective.name=vq_vae", "nets={name: conv, width: 4}", "changes={60: {objective.num_codes: 8}}"],
            r"tensor codebook\S* is .*; only nets\.latent",
        ),
        (
            "autoencoder",
            ["changes={60: {ema.half_life_samples: 0}}"],
            r"^changes at sample 60: ema\.half_life_samples 100 -> 0: .* cannot begin or end",
        ),
        (
            "autoencoder",
            ["ema.half_life_samples=0", "changes={60: {optim.lr: 1}, 80: {ema.half_life_samples: 50}}"],
            r"^changes at sample 80: ema\.half_life_samples 0 -> 50: .* cannot begin or end",
        ),
        ("autoencoder", ["changes={60: {optim.name: sgd}}"], r"^changes at sample 60: optim\.name adam -> sgd: "),
        ("gan", ["optim.name=sgd", "changes={60: {optim.name: adamw}}"], r"sample 60: optim\.name sgd -> adamw: "),
    ],
)
def test_a_change_that_the_model_cannot_make_is_refused_before_training(
    kind: str, overrides: list[str], message: str, make_run: MakeRun
) -> None:
    register(Picky)
    run = make_run(kind, *overrides)
    with pytest.raises(ConfigError, match=message):
        check(run.config, DataSet.open(run.data), 1)
    with pytest.raises(ConfigError, match=message):
        next(train(run, World.local("cpu"), should_stop=lambda: pytest.fail("a step was taken")))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("autoencoder", "ema.half_life_samples: 5"),
        ("autoencoder", "optim.name: adamw, optim.weight_decay: 0.1"),
        ("autoencoder", "objective.code: sigmoid"),
        ("gan", "objective.r1: 1.0, objective.penalty_every: 2"),
        ("gan", "optim.betas: [0.0, 0.9], optim.clip: 1.0, optim.weight_decay: 0.01"),
        ("gan", "optim.phases: {discriminator: {lr: 1.0e-4}}"),
    ],
)
def test_what_leaves_the_tensors_as_they_are_may_change(
    kind: str, change: str, make_run: MakeRun, finish: Finish, newest: Newest, differing: Differing
) -> None:
    plain, changing = make_run(kind), make_run(kind, f"changes={{100: {{{change}}}}}")
    stopped = make_run(kind, f"changes={{100: {{{change}}}}}")
    for run in (plain, changing):
        finish(run)
    found = newest(changing).tensors()
    assert found.keys() == newest(plain).tensors().keys()
    assert differing(found, newest(plain).tensors()) != []
    finish(stopped, stop_after=6)
    finish(stopped, newest(stopped))
    assert differing(newest(stopped).tensors(), found) == []


def test_a_resume_with_other_changes_is_refused(make_run: MakeRun, finish: Finish, newest: Newest, tiny: Tiny) -> None:
    run = make_run("autoencoder", SCHEDULE)
    finish(run, stop_after=4)
    data = DataSet.open(run.data)
    for other in (tiny(), tiny("autoencoder", "changes={60: {nets.latent: 9}}")):
        with pytest.raises(RunError, match=r"^(changes|nets)\S* may not change when a run is resumed"):
            check_resume(newest(run), other, data)
    again = run.resumed(["report.every_samples=40", "duration_samples=400"])
    check_resume(newest(run), again.config, data)


# --- worlds of several workers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_change_alike_and_a_resumed_world_equals_one_that_never_stopped(
    size: int, small_data: Path, tmp_path: Path, launch_world: Callable[..., list[str]], differing: Differing
) -> None:
    launch_world(size, SCENARIO, small_data, tmp_path)
    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(size)]
    for rank in ranks[1:]:
        assert differing(rank, ranks[0]) == []
    for family in ("autoencoder", "vae", "gan"):
        runs = [
            {name.removeprefix(prefix): tensor for name, tensor in ranks[0].items() if name.startswith(prefix)}
            for prefix in (f"{family}/straight/", f"{family}/at/", f"{family}/after/")
        ]
        assert {name.partition("/")[0] for name in runs[0]} == {"nets", "ema", "optim"}
        assert [differing(run, runs[0]) for run in runs] == [[], [], []]
