"""The private names of Ray that searches rely on: this test says which of them has changed."""

import inspect
from typing import Any

import pytest
from ray.train.torch import config as torch_config
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler
from ray.tune.schedulers.pbt import _PBTTrialState

from shoal_ray.population.scheduler import PRIVATE


def holders() -> dict[str, Any]:
    """Return what each entry of ``PRIVATE`` is looked up in."""
    trial = Trial("contract", stub=True)
    pbt = PopulationBasedTraining("t", "m", "max", 1, custom_explore_fn=dict)
    return {
        "PopulationBasedTraining": PopulationBasedTraining,
        "PopulationBasedTraining()": pbt,
        "_PBTTrialState()": _PBTTrialState(trial),
        "Trial()": trial,
        "Trial.run_metadata.checkpoint_manager": trial.run_metadata.checkpoint_manager,
        "TuneController": TuneController,
        "DataParallelTrainer": DataParallelTrainer,
        "TrainController": TrainController,
        "WorkerGroup": WorkerGroup,
        "FixedScalingPolicy": FixedScalingPolicy,
        "ray.train.torch.config": torch_config,
    }


@pytest.mark.parametrize(("holder", "names"), PRIVATE.items())
def test_what_is_used_of_ray_is_there(holder: str, names: tuple[str, ...]) -> None:
    missing = [name for name in names if not hasattr(holders()[holder], name)]
    assert not missing, f"Ray's {holder} has no {', '.join(missing)} any more; mend scheduler.py or hosted.py"


SIGNATURES = {
    PopulationBasedTraining._checkpoint_or_exploit: ["trial", "tune_controller", "upper_quantile", "lower_quantile"],
    PopulationBasedTraining._exploit: ["tune_controller", "trial", "trial_to_clone"],
    PopulationBasedTraining._get_new_config: ["trial", "trial_to_clone"],
    PopulationBasedTraining.on_trial_result: ["tune_controller", "trial", "result"],
    PopulationBasedTraining.on_trial_add: ["tune_controller", "trial"],
    TuneController._schedule_trial_train: ["trial"],
    WorkerGroup._create_placement_group: ["scaling_config", "worker_group_context"],
    WorkerGroup._init_train_context_on_workers: ["workers", "sync_actor", "train_context_args"],
    torch_config._setup_torch_process_group: ["backend", "world_rank", "world_size", "init_method", "timeout_s"],
    torch_config._shutdown_torch: ["destroy_process_group"],
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_it_takes_what_it_is_given(function: Any) -> None:
    found = [name for name in inspect.signature(function).parameters if name != "self"]
    assert found == SIGNATURES[function], f"Ray's {function.__qualname__} now takes {found}"


def test_ray_still_pauses_by_these_words() -> None:
    source = inspect.getsource(PopulationBasedTraining.on_trial_result)
    for word in ("TrialScheduler.PAUSE", "TrialScheduler.NOOP", "_next_perturbation_sync", "get_live_trials"):
        assert word in source, f"PopulationBasedTraining.on_trial_result no longer speaks of {word}"
    assert "pause_trial" in inspect.getsource(PopulationBasedTraining._exploit)
    assert (TrialScheduler.CONTINUE, TrialScheduler.PAUSE, TrialScheduler.NOOP) == ("CONTINUE", "PAUSE", "NOOP")


def test_the_callbacks_that_are_left_out_have_these_names() -> None:
    from ray.train.v2._internal.callbacks import datasets, placement_group_callback

    from shoal_ray.hosted import NEEDLESS

    assert placement_group_callback.PlacementGroupCleanerCallback.__name__ in NEEDLESS
    assert datasets.DatasetsCallback.__name__ in NEEDLESS
