import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shoal.checkpoint import Checkpoint
from shoal.data import DataSet
from shoal.errors import DataError
from shoal.loop import Tick
from shoal.model import Model
from shoal.quality import monitor as monitor_module
from shoal.quality.evaluate import evaluate
from shoal.quality.extractor import Extractor, random_extractor
from shoal.quality.generation import Described, describe_real
from shoal.quality.images import Sample, Workshare
from shoal.quality.monitor import Monitor
from shoal.quality.store import keep
from shoal.run import Run
from shoal.world import World

Untrained = Callable[..., Model]
CPU = World.local("cpu")


def watched(model: Model, data: DataSet, **options: Any) -> Monitor:
    return Monitor(model.objective, model.config, data, CPU, **options)


@pytest.mark.parametrize("family", ["autoencoder", "gan"])
def test_training_is_the_same_bit_for_bit_with_and_without(
    family: str,
    make_run: Callable[..., Run],
    finish: Callable[..., list[Tick]],
    newest: Callable[[Run], Checkpoint],
    differing: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], list[str]],
    measures: Callable[[Any], dict[str, Any]],
) -> None:
    without, with_it = make_run(family), make_run(family, "report.quality_every_samples=40")
    plain, told = finish(without), finish(with_it)
    assert differing(newest(without).tensors(), newest(with_it).tensors()) == []
    for one, other in zip(plain, told, strict=True):
        learned = {name: value for name, value in measures(other.scalars).items() if name in one.scalars}
        assert learned == measures(one.scalars)
    looks = [tick for tick in told if set(tick.scalars) - set(plain[0].scalars)]
    assert [tick.samples for tick in looks] == [40, 80, 120, 160, 200]
    expected = {"autoencoder": "quality/mse", "gan": f"fd/{random_extractor((1, 28, 28)).id}"}[family]
    assert expected in looks[0].scalars


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("autoencoder", ["mse", "psnr"]),
        ("vae", ["mse", "psnr", "elbo", "kl", "active_units", "fd", "kd"]),
        ("gan", ["fd", "kd"]),
        ("copy", ["mse", "psnr"]),
    ],
)
def test_a_monitor_says_what_an_evaluation_says(
    family: str, expected: list[str], untrained: Untrained, corner_data: DataSet
) -> None:
    model = untrained(family, corner_data)
    found = watched(model, corner_data).measure()
    full = evaluate(model, corner_data, importance_samples=1).metrics
    assert [name.removeprefix("quality/").partition("/")[0] for name in found] == expected
    assert found == pytest.approx({name: full[name] for name in found})


def test_codes_are_watched(untrained: Untrained, grey: DataSet) -> None:
    found = watched(untrained("vq_vae", grey), grey).measure()
    assert {"quality/code_usage", "quality/perplexity", "quality/bits_per_image"} <= found.keys()


def test_it_uses_the_extractor_beside_the_data(
    untrained: Untrained, corner_data: DataSet, classifier: Extractor, tmp_path: Path
) -> None:
    data = DataSet.open(shutil.copytree(corner_data.path, tmp_path / "data"))
    path = keep(classifier, data)
    assert list(watched(untrained("painter", data), data).measure()) == [f"fd/{classifier.id}", f"kd/{classifier.id}"]
    (path / "weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="is damaged"):  # before training starts
        watched(untrained("painter", data), data)


def test_the_real_images_are_looked_at_once(
    untrained: Untrained, corner_data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []

    def look(model: Model, extractor: Extractor, sample: Sample, share: Workshare) -> Described:
        looks.append(sample.split)
        return describe_real(model, extractor, sample, share)

    monkeypatch.setattr(monitor_module, "describe_real", look)
    monitor = watched(untrained("gan", corner_data), corner_data)
    assert monitor.measure() == monitor.measure()
    assert looks == ["test"]


def test_it_sees_the_weights_of_now_and_leaves_them_in_training_mode(
    untrained: Untrained, corner_data: DataSet
) -> None:
    model = untrained("gan", corner_data)
    for net in model.objective.nets.values():
        net.train()
    monitor = watched(model, corner_data, num=20)
    before, state = monitor.measure(), torch.random.get_rng_state()
    with torch.no_grad():
        for weight in model.objective.nets["generator"].parameters():
            weight.add_(1)
    after = monitor.measure()
    assert all(after[name] != before[name] for name in before)
    assert all(net.training for net in model.objective.nets.values())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_number_of_images_is_the_configurations(untrained: Untrained, corner_data: DataSet) -> None:
    model = untrained("autoencoder", corner_data, "report.quality_images=10")
    assert watched(model, corner_data).measure() == watched(model, corner_data, num=10).measure()
    assert watched(model, corner_data).measure() != watched(model, corner_data, num=11).measure()
