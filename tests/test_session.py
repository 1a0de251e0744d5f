"""A run in memory: stretches of training, other models' weights at its own clock, and what is measured of it."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from shoal import checkpoint, checkpoint_format
from shoal.config import RunConfig
from shoal.data import DataSet, Stream
from shoal.engine import Engine
from shoal.errors import CheckpointError, ConfigError, DataError
from shoal.model import Model
from shoal.noise import Noise
from shoal.objectives import Batch, Gan, Scalars, register
from shoal.objectives.gan import GanConfig
from shoal.pixels import to_float
from shoal.quality import monitor as monitor_module
from shoal.quality.generation import Described, describe_real
from shoal.quality.images import Sample
from shoal.quality.monitor import Monitor
from shoal.session import Session, Tick
from shoal.state import State, build_objective
from shoal.transplant import transplant
from shoal.world import World

Tiny = Callable[..., RunConfig]
Differing = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], list[str]]
Begin = Callable[..., Session]
CPU = World.local("cpu")
KINDS = {"autoencoder": ["autoencoder"], "vae": ["autoencoder", "objective.name=vae"], "gan": ["gan"]}
WATCHED = ["report.quality_every_samples=40", "report.every_samples=1000", "checkpoint.every_samples=0"]


@pytest.fixture
def begin(small_data: Path) -> Iterator[Begin]:
    """Return ``begin(config, **more)``: a session on the grey images, closed at the end."""
    with ExitStack() as stack:
        yield lambda config, **more: stack.enter_context(Session(config, small_data, CPU, **more))


def go(session: Session, until: int) -> list[Tick]:
    return list(session.advance(until))


def by_hand(
    config: RunConfig, data: DataSet, tensors: Mapping[str, Tensor], start: int, stop: int
) -> dict[str, Tensor]:
    """Train with tensors from one clock to another, step by step; return all tensors."""
    objective = build_objective(config, data.shape, data.num_classes)
    state = State.fresh(objective, config)
    state.load_tensors(tensors)
    state.samples, state.batches = start, start // config.batch
    engine, rows = Engine(objective, state, config, CPU), slice(0, config.batch)
    split, seed = config.data.split, config.seed
    with Stream(data, split=split, batch=config.batch, seed=seed, rows=rows, position=start) as stream:
        for index in range(start // config.batch, stop // config.batch):
            images = to_float(next(stream).images, config.data.range)
            batch = Batch(images=images, labels=None, index=index, rows=rows, size=config.batch)
            engine.step(batch, Noise(seed, index, config.batch, rows))
    return state.tensors()


# --- stretches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_stretches_equal_one_go(kind: str, tiny: Tiny, begin: Begin, differing: Differing) -> None:
    whole, pieces = begin(tiny(*KINDS[kind])), begin(tiny(*KINDS[kind]))
    go(whole, 200)
    for until in (60, 60, 61, 140, 200):  # to 61 is one step further; to 60 again, none
        go(pieces, until)
        assert pieces.samples == {60: 60, 61: 80, 140: 140, 200: 200}[until]
    assert differing(pieces.tensors(), whole.tensors()) == []


def test_the_end_of_a_stretch_has_a_tick_unless_it_is_none(tiny: Tiny, begin: Begin) -> None:
    session = begin(tiny("autoencoder", *WATCHED))
    (last,) = session.advance(30)
    assert (last.samples, last.save is not None, "quality/mse" in last.scalars) == (40, True, True)
    assert list(session.advance(60, ends=False)) == []
    assert session.samples == 60
    (after,) = session.advance(80)  # what was learned since the last tick is told with the next
    assert after.samples == 80


def test_it_says_whether_it_was_asked_to_stop(tiny: Tiny, begin: Begin) -> None:
    def ending(until: int, stop_after: int) -> tuple[bool, list[int]]:
        asked, ticks = iter(range(1, 100)), []
        advancing = session.advance(until, should_stop=lambda: next(asked) == stop_after)
        while True:
            try:
                ticks.append(next(advancing).samples)
            except StopIteration as end:
                return end.value, ticks

    session = begin(tiny("autoencoder", "report.every_samples=1000", "checkpoint.every_samples=0"))
    assert ending(40, 99) == (False, [40])
    assert ending(200, 2) == (True, [80])
    assert ending(100, 1) == (True, [100])  # at its end
    assert ending(100, 1) == (False, [])


# --- becoming another model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_another_models_tensors_go_on_at_the_own_clock(
    kind: str, tiny: Tiny, begin: Begin, differing: Differing, small_data: Path
) -> None:
    config = tiny(*KINDS[kind], "optim.lr=5.0e-3")
    donor, taker = begin(tiny(*KINDS[kind], "init_seed=7")), begin(config)
    go(donor, 100)
    go(taker, 60)
    taken = donor.tensors()
    taker.become(config, taken, samples=60, made_by=donor.config)
    assert taker.samples == 60
    assert differing(taker.tensors(), taken) == []
    go(taker, 140)
    data = DataSet.open(small_data)
    assert differing(taker.tensors(), by_hand(config, data, taken, 60, 140)) == []
    assert differing(taker.tensors(), by_hand(config, data, taken, 100, 180)) != []
    assert differing(donor.tensors(), taken) == []


@pytest.mark.parametrize("samples", [20, 180])
def test_it_may_move_its_clock(samples: int, tiny: Tiny, begin: Begin, differing: Differing, small_data: Path) -> None:
    session = begin(tiny("gan"))
    go(session, 100)
    taken = session.tensors()
    session.become(session.config, taken, samples=samples, made_by=session.config)
    assert session.samples == session.facts()["stream"]["position"] == samples
    assert session.facts()["batches"] == samples // 20
    go(session, samples + 60)
    expected = by_hand(session.config, DataSet.open(small_data), taken, samples, samples + 60)
    assert differing(session.tensors(), expected) == []


@pytest.mark.parametrize("latent", [2, 9])
def test_another_size_of_the_latent_is_a_transplant(
    latent: int, tiny: Tiny, begin: Begin, differing: Differing, small_data: Path
) -> None:
    small = tiny("gan", f"nets.latent={latent}")
    donor, taker = begin(tiny("gan")), begin(tiny("gan"))
    go(donor, 100)
    taker.become(small, donor.tensors(), samples=40, made_by=donor.config)
    data = DataSet.open(small_data)
    images = torch.from_numpy(data.rows("train", 0, 96))
    expected = transplant(
        donor.tensors(), donor.config, small, data.shape, data.num_classes, images, key=f"{small.seed}/transplant/40"
    )
    assert differing(taker.tensors(), expected) == []
    go(taker, 100)
    assert taker.facts()["config"]["nets"]["latent"] == latent


def test_adapting_to_the_same_configuration_is_nothing(tiny: Tiny, begin: Begin, differing: Differing) -> None:
    plain, adapted = begin(tiny("gan")), begin(tiny("gan"))
    go(plain, 100)
    go(adapted, 60)
    adapted.adapt(tiny("gan"))
    adapted.adapt(tiny("gan", "report.every_samples=40"))
    go(adapted, 100)
    assert differing(adapted.tensors(), plain.tensors()) == []
    assert adapted.config.report.every_samples == 40


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("nets.hidden=[8]", ConfigError, r"only nets\.latent \(4 -> 4\)"),
        ("nets.name=conv", ConfigError, r"only nets\.latent \(4 -> 32\)"),
        ("ema.half_life_samples=0", CheckpointError, "is only in the checkpoint"),
    ],
)
def test_what_cannot_become_is_refused_and_leaves_it_whole(
    override: str, error: type[Exception], message: str, tiny: Tiny, begin: Begin, differing: Differing
) -> None:
    session = begin(tiny())
    go(session, 40)
    before = session.tensors()
    with pytest.raises(error, match=message):
        session.become(tiny("autoencoder", override), before, samples=40, made_by=session.config)
    session.become(tiny(), before, samples=40, made_by=tiny())
    go(session, 60)
    plain = begin(tiny())
    go(plain, 60)
    assert differing(session.tensors(), plain.tensors()) == []


def test_its_tensors_are_copies(tiny: Tiny, begin: Begin, differing: Differing) -> None:
    session = begin(tiny("gan"))
    go(session, 40)
    before = session.tensors()
    again = {name: tensor.clone() for name, tensor in before.items()}
    go(session, 80)
    assert differing(before, again) == []
    assert set(differing(before, session.tensors())) >= {name for name in before if name.endswith("weight")}


# --- what is written -------------------------------------------------------------------------------------------------


def test_its_facts_make_a_checkpoint_that_it_goes_on_from(
    tiny: Tiny, begin: Begin, differing: Differing, tmp_path: Path
) -> None:
    session = begin(tiny("gan"))
    go(session, 60)
    notes = {"member": 3, "values": {"optim.lr": 1e-3, "nets.latent": 5}, "since": None}
    checkpoint.write(tmp_path / "noted", session.tensors(), **session.facts(), notes=notes)
    checkpoint.write(tmp_path / "plain", session.tensors(), **session.facts())
    found, plain = checkpoint.read(tmp_path / "noted"), checkpoint.read(tmp_path / "plain")
    assert found.notes == notes
    assert plain.notes == {}
    assert (found.samples, found.batches, found.shape, found.num_classes) == (60, 3, (1, 28, 28), 4)
    assert found.config == session.config.model_dump(mode="json")
    assert found.stream == session.facts()["stream"]
    assert found.stream["position"] == 60
    assert differing(found.tensors(), session.tensors()) == []
    again = begin(tiny("gan"), tensors=found.tensors, samples=found.samples, stream=found.stream)
    for each in (session, again):
        go(each, 120)
    assert differing(again.tensors(), session.tensors()) == []


def test_a_checkpoint_from_before_there_were_notes_has_none(tiny: Tiny, begin: Begin, tmp_path: Path) -> None:
    session = begin(tiny())
    checkpoint.write(tmp_path / "old", session.tensors(), **session.facts())
    state = json.loads((tmp_path / "old" / "state.json").read_text())
    del state["notes"], state["xxh3"]
    state["xxh3"] = checkpoint_format._digest(state)
    (tmp_path / "old" / "state.json").write_text(json.dumps(state))
    assert checkpoint.read(tmp_path / "old").notes == {}


def test_another_data_sets_stream_is_refused(tiny: Tiny, begin: Begin) -> None:
    session = begin(tiny())
    stream = {**session.facts()["stream"], "fingerprint": "0" * 64}
    with pytest.raises(DataError, match="fingerprint"):
        begin(tiny(), tensors=session.tensors, stream=stream)


# --- the seed of the first weights -----------------------------------------------------------------------------------


class WatchedGan(Gan):
    """A GAN that remembers which images and which noise it was given."""

    class Config(GanConfig):
        name: Literal["watched-gan"] = "watched-gan"  # type: ignore[assignment]  # another objective

    seen: list[Tensor]

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.seen = []

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Scalars]:
        self.seen.append(torch.cat([batch.images.flatten(1), noise.normal(f"latent/{phase}", 5)], dim=1))
        return super().loss(phase, batch, noise)


def test_another_seed_of_the_first_weights_sees_the_same(tiny: Tiny, begin: Begin, differing: Differing) -> None:
    register(WatchedGan)
    seen, first, last = {}, {}, {}
    for name, override in (("none", "init_seed=null"), ("same", "init_seed=3"), ("other", "init_seed=4")):
        session = begin(tiny("gan", "objective.name=watched-gan", "seed=3", override))
        first[name] = session.tensors()
        objective = session._objective
        assert isinstance(objective, WatchedGan)
        go(session, 120)  # past an epoch
        seen[name], last[name] = torch.stack(objective.seen), session.tensors()
    assert len(seen["none"]) == 12
    assert seen["other"].equal(seen["none"])
    assert differing(first["same"], first["none"]) == differing(last["same"], last["none"]) == []
    different = set(differing(first["other"], first["none"]))
    assert different >= {name for name in first["none"] if name.endswith("weight")}
    assert (
        differing(first["other"], begin(tiny("gan", "objective.name=watched-gan", "seed=4")).tensors()) == []
    )  # the weights are those of that seed


# --- what is measured ------------------------------------------------------------------------------------------------


def looks(ticks: list[Tick]) -> list[Tick]:
    return [tick for tick in ticks if tick.parts]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("autoencoder", ["quality/mse", "quality/psnr"]),
        ("vae", ["quality/elbo", "quality/kl", "quality/mse", "quality/psnr", "kd/"]),
        ("gan", ["kd/"]),
    ],
)
def test_parts_are_the_values_that_measures_are_the_means_of(
    kind: str, names: list[str], tiny: Tiny, begin: Begin
) -> None:
    ticks = looks(go(begin(tiny(*KINDS[kind], *WATCHED)), 80))
    assert [tick.samples for tick in ticks] == [40, 80]
    for tick in ticks:
        assert sorted(name if name.startswith("quality") else "kd/" for name in tick.parts) == sorted(names)
        for name, values in tick.parts.items():
            assert (values.shape, values.dtype, values.device.type) == ((32,), torch.float64, "cpu")
            assert values.mean().item() == pytest.approx(tick.scalars[name], rel=1e-12)
    assert any(not ticks[0].parts[name].equal(values) for name, values in ticks[1].parts.items())


def test_each_part_is_of_one_held_out_image(tiny: Tiny, begin: Begin, small_data: Path) -> None:
    config = tiny("autoencoder", *WATCHED, "data.split=train[:80%]", "data.held_out=train[80%:]", "batch=40")
    session = begin(config)
    (tick,) = looks(go(session, 40))
    data = DataSet.open(small_data)
    images = torch.from_numpy(data.rows("train", 76, 96))
    model = Model(session._objective.using(session._state.ema), config, data.shape, 40, torch.device("cpu"))
    errors = (model.reconstruct(images) - images / 255).square().flatten(1).mean(1)
    torch.testing.assert_close(tick.parts["quality/mse"], errors.double(), rtol=1e-5, atol=0)


def test_models_are_measured_on_the_same_images_and_noise(tiny: Tiny, begin: Begin) -> None:
    # Two runs that share nothing but their weights, of other seeds and at other clocks.
    one, other = begin(tiny("gan", *WATCHED)), begin(tiny("gan", *WATCHED, "seed=5", "optim.lr=1.0e-30"))
    (look,) = looks(go(one, 40))
    other.become(other.config, one.tensors(), samples=120, made_by=one.config)
    assert other._monitor is not None
    assert one._monitor is not None
    found, again = other._monitor.measure(), one._monitor.measure()
    assert found == again == {name: value for name, value in look.scalars.items() if name in found}
    assert all(values.equal(look.parts[name]) for name, values in other._monitor.parts.items())


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits of which real images were looked at, one by one."""
    found: list[str] = []

    def look(model: Model, extractor: Any, sample: Sample, share: Any) -> Described:
        found.append(sample.split)
        return describe_real(model, extractor, sample, share)

    monkeypatch.setattr(monitor_module, "describe_real", look)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_following_monitor_measures_the_new_model(
    kind: str, tiny: Tiny, small_data: Path, described: list[str]
) -> None:
    data = DataSet.open(small_data)
    configs = [tiny(*KINDS[kind]), tiny(*KINDS[kind], "nets.latent=7", "seed=1")]
    old, new = [build_objective(config, data.shape, data.num_classes) for config in configs]
    first = Monitor(old, configs[0], data, CPU)
    of_old = first.measure()
    assert first.fits(configs[1])
    second = first.following(new, configs[1])
    of_new, parts = second.measure(), second.parts
    assert described == (["test"] if kind != "autoencoder" else [])
    fresh = Monitor(new, configs[1], data, CPU)
    assert of_new == fresh.measure()
    assert parts.keys() == fresh.parts.keys()
    assert all(values.equal(fresh.parts[name]) for name, values in parts.items())
    assert of_new != of_old
    assert first.measure() == of_old  # it still measures the old one


@pytest.mark.parametrize(
    ("override", "fits"),
    [
        ("optim.lr=1", True),
        ("nets.latent=9", True),
        ("report.quality_every_samples=7", True),
        ("report.quality_images=10", False),
        ("data.held_out=train[90%:]", False),
        ("data.range=unit", False),
        ("objective.name=vae", False),
    ],
)
def test_a_monitor_fits_what_it_reads_the_same_images_for(
    override: str, fits: bool, tiny: Tiny, small_data: Path
) -> None:
    data, config = DataSet.open(small_data), tiny("gan")
    monitor = Monitor(build_objective(config, data.shape, data.num_classes), config, data, CPU)
    assert monitor.fits(tiny("gan", override)) is fits


def test_a_session_that_becomes_another_model_does_not_look_at_the_real_images_again(
    tiny: Tiny, begin: Begin, described: list[str], small_data: Path
) -> None:
    session = begin(tiny("gan", *WATCHED))
    go(session, 80)
    larger = tiny("gan", *WATCHED, "nets.latent=8", "optim.lr=1.0e-3")
    session.adapt(larger)
    (tick,) = looks(go(session, 120))
    assert described == ["test"]
    data = DataSet.open(small_data)
    fresh = Monitor(session._objective.using(session._state.ema), larger, data, CPU)
    assert fresh.measure() == {name: value for name, value in tick.scalars.items() if name.startswith(("fd/", "kd/"))}
    session.adapt(tiny("gan", *WATCHED, "nets.latent=8", "report.quality_images=20"))
    (tick,) = looks(go(session, 160))
    assert all(len(values) == 20 for values in tick.parts.values())
    assert described == ["test", "test", "test"]  # the fresh one's, and that of other images
