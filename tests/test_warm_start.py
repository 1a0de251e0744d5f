"""A run that starts from another run's weights: what it takes, what stays fresh, and what a resume needs of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shoal import checkpoint
from shoal.checkpoint import Checkpoint, directory_name
from shoal.config import RunConfig
from shoal.data import DataSet
from shoal.errors import CheckpointError, ConfigError, RunError
from shoal.execute import execute
from shoal.loop import Tick, train
from shoal.objectives import Autoencoder
from shoal.run import Run, refuse_changes
from shoal.state import build_objective
from shoal.warm_start import NOTED, Left, WarmStart, announced, fill, match, newest_of, plan
from shoal.world import World

Tiny = Callable[..., RunConfig]
MakeRun = Callable[..., Run]
Finish = Callable[..., list[Tick]]
Newest = Callable[[Run], Checkpoint]
Differing = Callable[..., list[str]]

STILL = ["optim.name=sgd", "optim.lr=1e-30", "duration_samples=20"]
"""One step that rounds to none, so that the first checkpoint holds what the run started from."""


@pytest.fixture
def trained(make_run: MakeRun, finish: Finish) -> Callable[..., Run]:
    """Return ``trained(kind, *overrides)``: a run that was trained for 60 samples."""

    def make(kind: str = "autoencoder", *overrides: str, data: Path | None = None) -> Run:
        run = make_run(kind, "duration_samples=60", *overrides, data=data)
        finish(run)
        return run

    return make


def group(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors of ``nets`` or ``ema`` without that prefix."""
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}


@pytest.mark.parametrize("kind", ["autoencoder", "gan"])
def test_networks_and_their_average_start_from_the_averaged_weights_where_there_are_some(
    trained: Callable[..., Run], make_run: MakeRun, finish: Finish, newest: Newest, differing: Differing, kind: str
) -> None:
    source = trained(kind)
    saved = newest(source).tensors()
    expected = group(saved, "nets") | group(saved, "ema")
    assert differing(group(saved, "nets"), expected)
    run = make_run(kind, *STILL, f"init_from={source.path}", "seed=5")
    finish(run)
    started = newest(run)
    assert (started.samples, started.batches, started.stream["position"]) == (20, 1, 20)
    tensors = started.tensors()
    assert not differing(group(tensors, "nets"), expected)
    averaged = group(tensors, "ema")
    assert averaged
    assert not differing(averaged, {name: expected[name] for name in averaged})


def test_without_an_average_there_the_plain_weights_are_taken(
    trained: Callable[..., Run], make_run: MakeRun, finish: Finish, newest: Newest, differing: Differing
) -> None:
    source = trained("gan", "ema.half_life_samples=0")
    run = make_run("gan", *STILL, f"init_from={source.path}", "seed=5")
    finish(run)
    assert not differing(group(newest(run).tensors(), "nets"), group(newest(source).tensors(), "nets"))


def test_the_optimizer_starts_afresh(
    trained: Callable[..., Run], make_run: MakeRun, finish: Finish, newest: Newest
) -> None:
    run = make_run("autoencoder", "duration_samples=20", f"init_from={trained().path}")
    finish(run)
    steps = [tensor for name, tensor in newest(run).tensors().items() if name.endswith("/step")]
    assert steps
    assert {float(step) for step in steps} == {1.0}


def test_another_latent_is_taken_in_part_and_the_rest_is_fresh(
    trained: Callable[..., Run], tiny: Tiny, small_data: Path, newest: Newest
) -> None:
    source = newest(trained())
    config = tiny("autoencoder", "nets.latent=7", "seed=3", f"init_from={source.path.parent.parent}")
    data = DataSet.open(small_data)
    objective = build_objective(config, data.shape)
    fresh = {
        f"{name}.{key}": tensor.clone()
        for name, net in objective.nets.items()
        for key, tensor in net.state_dict().items()
    }
    found = fill(objective, source)
    assert found.left == {
        "encoder.3.weight": Left((7, 16), (4, 16)),
        "encoder.3.bias": Left((7,), (4,)),
        "decoder.0.weight": Left((16, 7), (16, 4)),
    }
    assert sorted([*found.taken, *found.left]) == sorted(fresh)
    saved = group(source.tensors(), "ema")
    for name, net in objective.nets.items():
        for key, tensor in net.state_dict().items():
            full = f"{name}.{key}"
            assert torch.equal(tensor, fresh[full] if full in found.left else saved[full]), full
    assert plan(config, data, Path("elsewhere")) == found  # told by shapes alone


def test_another_data_set_of_another_shape_is_taken_in_part(
    trained: Callable[..., Run], make_run: MakeRun, finish: Finish, newest: Newest, colour_data: Path
) -> None:
    source = trained()
    run = make_run("autoencoder", *STILL, f"init_from={source.path}", data=colour_data)
    finish(run)
    mine, theirs = group(newest(run).tensors(), "nets"), group(newest(source).tensors(), "ema")
    same = {name for name in mine if mine[name].shape == theirs[name].shape and mine[name].equal(theirs[name])}
    assert mine.keys() - same == {"encoder.1.weight", "decoder.2.weight", "decoder.2.bias"}


def test_an_autoencoders_decoder_is_no_generator_and_nothing_in_common_is_refused(
    trained: Callable[..., Run], tiny: Tiny, small_data: Path
) -> None:
    source = trained()
    config = tiny("gan", f"init_from={source.path}")
    with pytest.raises(ConfigError) as told:
        plan(config, DataSet.open(small_data), Path("elsewhere"))
    for part in (f"init_from={source.path}", "decoder, encoder", "discriminator, generator", "leave init_from out"):
        assert part in str(told.value)


def test_same_names_with_no_shape_in_common_say_so(trained: Callable[..., Run], tiny: Tiny, colour_data: Path) -> None:
    config = tiny("autoencoder", f"init_from={trained().path}", "nets.hidden=[9]", "nets.latent=3")
    with pytest.raises(ConfigError, match=r"e\.g\. encoder\.1\.weight \[9, 3072\] \(there \[16, 784\]\)"):
        plan(config, DataSet.open(colour_data), Path("elsewhere"))


class Counting(nn.Module):
    """A layer whose buffers make sense together only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def counting(tiny: Tiny, width: int) -> Autoencoder:
    config = tiny("autoencoder")
    objective = build_objective(config, (1, 28, 28))
    assert isinstance(objective, Autoencoder)
    objective.nets = {"encoder": nn.Sequential(Counting(width), nn.BatchNorm1d(4))}
    return objective


def write(path: Path, tensors: dict[str, Tensor]) -> Checkpoint:
    folder = path / "checkpoints" / directory_name(60)
    checkpoint.write(folder, tensors, samples=60, batches=3, shape=(1, 28, 28), stream={}, config={})
    return checkpoint.read(folder)


def test_the_buffers_of_a_layer_are_taken_together_or_not_at_all(tiny: Tiny, tmp_path: Path) -> None:
    there = counting(tiny, 5).nets["encoder"]
    with torch.no_grad():
        for tensor in there.state_dict().values():
            tensor.fill_(7)
    source = write(tmp_path, {f"nets/encoder.{key}": tensor for key, tensor in there.state_dict().items()})

    same = counting(tiny, 5)
    assert fill(same, source).left == {}
    assert all(bool((tensor == 7).all()) for tensor in same.nets["encoder"].state_dict().values())

    wider = counting(tiny, 6)
    found = fill(wider, source)
    assert found.left == {"encoder.0.mean": Left((6,), (5,)), "encoder.0.count": Left((), ())}
    state = wider.nets["encoder"].state_dict()
    assert state["0.weight"].tolist() == [7, 7, 7]
    assert state["0.count"].item() == 0
    assert state["1.running_mean"].tolist() == [7, 7, 7, 7]
    assert state["1.num_batches_tracked"].item() == 7


def test_what_was_taken_is_told_in_a_line_and_in_full(tmp_path: Path) -> None:
    left = {f"decoder.{index}.weight": Left((256, 64), (256, 32)) for index in range(3)}
    left |= {"decoder.8.bias": Left((3,), None), "decoder.9.count": Left((), ())}
    found = WarmStart(Path("runs/a"), 600_000, ("encoder",), ("encoder.0.weight", "encoder.0.bias"), left)
    assert found.summary() == (
        "starts from runs/a at sample 600,000: 2 of 7 tensors taken, averaged where it kept an average (encoder);"
        " new: decoder.0.weight [256, 64] (there [256, 32]), decoder.1.weight [256, 64] (there [256, 32]),"
        " decoder.2.weight [256, 64] (there [256, 32]), decoder.8.bias [3] (not there)"
        " and 1 more (environment.json lists them)"
    )
    assert json.loads(json.dumps(found.facts())) == {
        "run": "runs/a",
        "samples": 600_000,
        "epoch": 1,
        "averaged": ["encoder"],
        "taken": ["encoder.0.weight", "encoder.0.bias"],
        "left": {
            "decoder.0.weight": {"here": [256, 64], "there": [256, 32]},
            "decoder.1.weight": {"here": [256, 64], "there": [256, 32]},
            "decoder.2.weight": {"here": [256, 64], "there": [256, 32]},
            "decoder.8.bias": {"here": [3], "there": None},
            "decoder.9.count": {"here": [], "there": []},
        },
    }
    assert str(left["decoder.9.count"]) == "[] (the rest of its layer does not fit)"
    whole = WarmStart(Path("runs/a"), 20, (), ("encoder.0.weight",), {})
    assert whole.summary() == "starts from runs/a at sample 20: all 1 tensors taken"


def test_a_resumed_run_needs_the_source_no_more_and_equals_one_that_never_stopped(
    trained: Callable[..., Run], make_run: MakeRun, finish: Finish, newest: Newest, differing: Differing
) -> None:
    source = trained()
    straight, stopped = (make_run("autoencoder", f"init_from={source.path}") for _ in range(2))
    finish(straight)
    finish(stopped, stop_after=4)
    shutil.rmtree(source.path)
    finish(stopped, resume=newest(stopped))
    assert newest(stopped).samples == newest(straight).samples == 200
    assert not differing(newest(stopped).tensors(), newest(straight).tensors())


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_from_the_source_again(
    trained: Callable[..., Run], make_run: MakeRun, newest: Newest, differing: Differing
) -> None:
    source = trained()
    straight, killed, cold = (
        make_run("autoencoder", *overrides)
        for overrides in ([f"init_from={source.path}"], [f"init_from={source.path}"], [])
    )
    world = World.local("cpu")
    for _, tick in zip(range(3), train(killed, world), strict=False):
        assert not tick.save
    assert killed.newest_checkpoint() is None
    for run in (straight, killed, cold):
        execute(run, world)
    assert not differing(newest(killed).tensors(), newest(straight).tensors())
    assert differing(newest(killed).tensors(), newest(cold).tensors())


def test_every_worker_takes_the_checkpoint_that_was_told_even_if_the_source_has_trained_on(
    trained: Callable[..., Run], tiny: Tiny, small_data: Path, tmp_path: Path, finish: Finish, newest: Newest
) -> None:
    source = trained("autoencoder", "checkpoint.keep=1")
    config = tiny("autoencoder", f"init_from={source.path}")
    told = plan(config, DataSet.open(small_data), tmp_path / "new")
    assert told is not None
    run = Run.create(tmp_path / "new", config, small_data, facts={NOTED: told.facts()})
    finish(source.resumed(["duration_samples=80"]), resume=newest(source))
    assert newest_of(source.path, run.path).samples == 80
    found = announced(run)
    assert found is not None
    assert found.samples == told.samples == 60

    checkpoint.prune(source.checkpoints, 1)
    with pytest.raises(ConfigError, match=r"000000000060, which .*new was to start from, is gone .*--resume starts"):
        announced(run)


def test_a_source_that_was_resumed_is_found_by_the_epoch_of_its_checkpoint(
    make_run: MakeRun, tiny: Tiny, small_data: Path, tmp_path: Path
) -> None:
    source = make_run("autoencoder", "duration_samples=60")
    execute(source, World.local("cpu"))
    execute(source.resumed(["duration_samples=80"]), World.local("cpu"))
    config = tiny("autoencoder", f"init_from={source.path}")
    told = plan(config, DataSet.open(small_data), tmp_path / "new")
    assert told is not None
    found = announced(Run.create(tmp_path / "new", config, small_data, facts={NOTED: told.facts()}))
    assert found is not None
    assert (found.samples, found.epoch) == (80, 2)


def test_without_the_key_nothing_is_looked_for(make_run: MakeRun, tiny: Tiny, small_data: Path) -> None:
    assert announced(make_run()) is None
    assert plan(tiny(), DataSet.open(small_data), Path("elsewhere")) is None


def test_a_source_that_is_not_there_or_has_no_checkpoint_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    own = tmp_path / "own"
    with pytest.raises(ConfigError, match=r"init_from=.*nowhere is not a run directory .* give the --out"):
        newest_of(tmp_path / "nowhere", own)
    fresh = make_run()
    with pytest.raises(ConfigError, match=r"init_from=.*run-0 has no checkpoint yet"):
        newest_of(fresh.path, own)
    with pytest.raises(ConfigError, match=r"init_from=.*run-0 is the run itself; give another --out"):
        newest_of(fresh.path, fresh.path)


def test_a_damaged_newest_checkpoint_is_passed_over_and_damaged_ones_alone_are_refused(
    make_run: MakeRun, finish: Finish, newest: Newest, tmp_path: Path
) -> None:
    source = make_run("autoencoder", "duration_samples=60", "checkpoint.every_samples=20")
    finish(source)
    (newest(source).path / "tensors.safetensors").write_bytes(b"")
    assert newest_of(source.path, tmp_path).samples == 40
    for path in source.checkpoints.iterdir():
        (path / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"init_from=.*: none of its checkpoints verifies; start from another run\n"):
        newest_of(source.path, tmp_path)
    state = source.checkpoints / directory_name(60) / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"version": 99}))
    with pytest.raises(CheckpointError, match="upgrade it"):
        newest_of(source.path, tmp_path)


def test_a_checkpoint_that_goes_while_it_is_read_is_told(
    trained: Callable[..., Run], tiny: Tiny, newest: Newest
) -> None:
    source = newest(trained())
    shutil.rmtree(source.path)
    with pytest.raises(ConfigError, match="cannot be read here: it was deleted since"):
        match(build_objective(tiny(), (1, 28, 28)), source)


def test_a_source_with_an_objective_of_its_own_needs_no_code(
    trained: Callable[..., Run], make_run: MakeRun, finish: Finish
) -> None:
    source = trained()
    config = source.path / "config.yaml"
    config.write_text(config.read_text().replace("name: autoencoder", "name: somebody-elses"))
    (source.path / "plugin.py").write_text("raise RuntimeError('was run')\n")
    run = make_run("autoencoder", *STILL, f"init_from={source.path}")
    assert finish(run)[-1].samples == 20


def test_the_path_is_absolute_wherever_the_configuration_is_read(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "latest").symlink_to("a")
    config = tiny("autoencoder", "init_from=runs/latest")
    assert config.init_from == tmp_path / "runs" / "a"
    assert f"init_from: {tmp_path / 'runs' / 'a'}\n" in config.to_yaml()
    assert tiny("autoencoder", "init_from=~/b").init_from == tmp_path / "home" / "b"
    assert tiny("autoencoder", "init_from=").init_from is None
    with pytest.raises(ConfigError, match="init_from: "):
        tiny("autoencoder", "init_from=~nobody-of-this-name/b")
    with pytest.raises(ConfigError, match="init_from=3"):
        tiny("autoencoder", "init_from=3")


def test_a_resumed_run_may_not_start_from_elsewhere(tiny: Tiny) -> None:
    with pytest.raises(RunError, match="init_from may not change"):
        refuse_changes(tiny(), tiny("autoencoder", "init_from=runs/a"))
