"""True hyperparameters of each stretch of a member, read back as TensorBoard reads them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from shoal.run import Run
from shoal_ray.population.directory import SearchDirectory
from shoal_ray.population.segments import FITNESS, SegmentWriter

Told = Callable[..., dict[str, Any]]
FIRST = {"optim.lr": 0.001, "nets.latent": 8, "optim.schedule": "cosine", "nets.hidden": [16, 8]}
SECOND = {"optim.lr": 0.00125, "nets.latent": 16, "optim.schedule": "constant", "nets.hidden": [16, 8]}


@pytest.fixture
def directory(make_search: Callable[..., SearchDirectory]) -> SearchDirectory:
    return make_search("fitness.price.nets.latent=0.01")


@pytest.fixture
def run(directory: SearchDirectory) -> Run:
    return Run.open(directory.member(0))


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def session(found: EventAccumulator) -> dict[str, Any]:
    """Return the hyperparameters of the session that starts in these events; there must be one."""
    content = found.PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    assert [info.name.tag for info in experiment.metric_infos] == [FITNESS]
    return {name: getattr(value, str(value.WhichOneof("kind"))) for name, value in start.hparams.items()}


def steps(found: EventAccumulator, tag: str = FITNESS) -> list[int]:
    return [event.step for event in found.Scalars(tag) if event.step]


def test_each_stretch_is_a_session_with_the_values_that_it_was_trained_with(
    directory: SearchDirectory, run: Run, told: Told
) -> None:
    writer = SegmentWriter(run, directory.search, 0, FIRST)
    for generation, mse in ((1, 0.5), (2, 0.4)):
        writer.write(100 * generation, told(0, generation, mse, latent=8))
    writer = SegmentWriter(run, directory.search, 200, SECOND)
    writer.write(300, told(0, 3, 0.3, latent=16))
    folders = sorted(path.name for path in (run.path / "tensorboard").iterdir())
    assert folders == ["segment-0001", "segment-0003"]
    first, second = (read(run.path / "tensorboard" / name) for name in folders)
    assert session(first) == {**FIRST, "nets.hidden": "[16, 8]"}
    assert session(second) == {**SECOND, "nets.hidden": "[16, 8]"}
    # Fitness is the metric with its price: 0.01 for each of 8 or 16.
    assert [event.value for event in first.Scalars(FITNESS) if event.step] == pytest.approx([0.58, 0.48])
    assert [event.value for event in second.Scalars(FITNESS) if event.step] == pytest.approx([0.46])
    assert (steps(first), steps(second)) == ([100, 200], [300])
    assert [event.value for event in first.Scalars("hyperparameters/optim.lr")] == pytest.approx([0.001] * 2)
    assert [event.value for event in second.Scalars("hyperparameters/nets.latent")] == [16]
    assert "hyperparameters/optim.schedule" not in first.Tags()["scalars"]


def test_no_step_comes_twice_where_a_member_goes_on_from_an_earlier_checkpoint(
    directory: SearchDirectory, run: Run, told: Told
) -> None:
    for since, generations in ((0, (1, 2, 3)), (0, (2, 3)), (0, (1, 2))):  # killed, and back to an older one each time
        writer = SegmentWriter(run, directory.search, since, FIRST)
        for generation in generations:
            writer.write(100 * generation, told(0, generation, 0.5))
    found = read(run.path / "tensorboard" / "segment-0001")
    assert steps(found) == steps(found, "hyperparameters/optim.lr") == [100, 200]
    assert session(found)["optim.lr"] == 0.001


def test_clocks_that_overshoot_name_their_generation(directory: SearchDirectory, run: Run, told: Told) -> None:
    # Batches of 33: the generations of 100 samples end at 132, 231 and 330.
    for start, name in ((0, "segment-0001"), (132, "segment-0002"), (231, "segment-0003"), (330, "segment-0004")):
        writer = SegmentWriter(run, directory.search, start, FIRST)
        generation = int(name[-1])
        end = -(-100 * generation // 33) * 33
        writer.write(end, told(0, generation, 0.5))
        assert session(read(run.path / "tensorboard" / name))["nets.latent"] == 8
