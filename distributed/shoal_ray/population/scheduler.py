"""Ray's PopulationBasedTraining decides who is good and who is not; members are told in place, and nobody is paused.

Ray would pause every trial that takes another's weights, and then every other that reports meanwhile. Here the
controller that Ray's scheduler sees cannot pause; the order goes to the switchboard. The private names that this
relies on are listed in ``PRIVATE``, and ``tests/population/test_ray_contract.py`` tells which of them has changed.
"""

import random
from collections.abc import Sequence
from typing import Any

import ray
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from shoal_ray.population.exploit import Choice
from shoal_ray.population.orders import DIVERGED_SCORE
from shoal_ray.population.space import Space
from shoal_ray.population.wire import switchboard

PRIVATE = {
    "PopulationBasedTraining": (
        "_checkpoint_or_exploit",
        "_exploit",
        "_get_new_config",
        "_quantiles",
        "on_trial_add",
        "on_trial_error",
        "on_trial_remove",
        "on_trial_complete",
        "on_trial_result",
    ),
    "PopulationBasedTraining()": ("_trial_state", "_synch", "_next_perturbation_sync"),
    "_PBTTrialState()": ("last_score", "last_train_time", "last_perturbation_time", "last_checkpoint", "last_result"),
    "Trial()": ("is_finished", "should_recover", "status", "config", "run_metadata"),
    "Trial.run_metadata.checkpoint_manager": ("_latest_checkpoint_result",),
    "TuneController": ("_schedule_trial_train", "get_live_trials", "get_trials", "pause_trial"),
    "DataParallelTrainer": ("_initialize_and_run_controller", "_create_default_callbacks"),
    "TrainController": ("run", "get_result", "worker_group_cls"),
    "WorkerGroup": (
        "_create_placement_group",
        "_init_train_context_on_workers",
        "_decorate_worker_log_file_paths",
        "_clear_state",
        "get_latest_poll_status",
        "get_worker_group_state",
        "shutdown",
    ),
    "FixedScalingPolicy": ("_send_resource_request", "_maybe_send_resource_request"),
    "ray.train.torch.config": ("_set_torch_distributed_env_vars", "_setup_torch_process_group", "_shutdown_torch"),
}
"""Of Ray 2.60: what is overridden or touched here and in ``shoal_ray/hosted.py``."""


EXPLORE_ATTEMPTS = 10


class Living:
    """The controller as Ray's scheduler sees it: nobody is paused, and who has ended is not waited for.

    Ray counts a trial among the living until its actor has stopped, after its scheduler was told of its end.
    """

    def __init__(self, controller: Any, ended: Sequence[str]) -> None:
        self._controller = controller
        self._ended = ended

    def pause_trial(self, *_: Any, **__: Any) -> None:
        """Do nothing: a member takes weights while it lives."""

    def get_live_trials(self) -> list[Trial]:
        """Return the trials that are yet to report."""
        return [
            trial
            for trial in self._controller.get_live_trials()
            if trial.trial_id not in self._ended and not trial.is_finished()
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._controller, name)


class InPlacePbt(PopulationBasedTraining):
    """Ray's scheduler over members that are never paused.

    Held as plain values, since Ray pickles it into its snapshots.

    Args:
        space: what may change, and how.
        seed: of the choices.
        namespace: of the search's actors.
        quantile: the share that takes, and the share that gives.
        synchronous: whether a generation waits for its last member.
        start: the generation that a search goes on from.
    """

    def __init__(
        self,
        space: Space,
        *,
        seed: int,
        namespace: str,
        quantile: float,
        synchronous: bool,
        start: int = 0,
    ) -> None:
        super().__init__(
            time_attr="generation",
            metric="score",
            mode="max",
            perturbation_interval=1,
            quantile_fraction=quantile,
            custom_explore_fn=lambda config: config,  # never called: `_get_new_config` is ours
            synch=synchronous,
        )
        # Ray counts its barriers from 1: the second one would lie behind members that begin later.
        self._next_perturbation_sync = max(start, 1)
        self._space = space
        self._seed = seed
        self._namespace = namespace
        self._parked: list[Trial] = []
        self._how: dict[str, str] = {}
        self._choice: Choice | None = None
        self._took = False
        self._over: list[str] = []

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Let Ray decide, and turn every pause into going on, or into waiting alive for the others."""
        living = self._seen(tune_controller)
        barrier = self._next_perturbation_sync
        self._took = False
        decision = super().on_trial_result(living, trial, result)
        if not self._synch:
            return self._asynchronous(tune_controller, trial, result)
        if decision != TrialScheduler.PAUSE:
            return decision
        if self._next_perturbation_sync == barrier:
            if trial not in self._parked:
                self._parked.append(trial)
            return TrialScheduler.NOOP
        self._release(tune_controller, other_than=trial)
        return TrialScheduler.CONTINUE

    def _asynchronous(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Go on; but a member that has diverged waits until somebody has weights for it."""
        if result["score"] <= DIVERGED_SCORE and not self._took:
            if trial not in self._parked:
                self._parked.append(trial)
            return TrialScheduler.NOOP
        lower, upper = self._quantiles()
        for parked in list(self._parked):
            self._took = False
            self._checkpoint_or_exploit(parked, self._seen(tune_controller), upper, lower)
            if self._took:
                self._parked.remove(parked)
                if parked.status == Trial.RUNNING:
                    tune_controller._schedule_trial_train(parked)
        return TrialScheduler.CONTINUE

    def _seen(self, tune_controller: Any) -> Any:
        return Living(tune_controller, self._over)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Keep what is known of a member that was lost and comes back."""
        known = self._trial_state.get(trial)
        super().on_trial_add(tune_controller, trial)
        if known is not None:
            self._trial_state[trial] = known

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Do not wait for a member that is gone for good."""
        super().on_trial_error(tune_controller, trial)
        if not trial.should_recover():  # type: ignore[no-untyped-call]  # ray's own
            self._gone(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Do not wait for a member that is gone for good."""
        super().on_trial_remove(tune_controller, trial)
        self._gone(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Do not wait for a member that has finished."""
        super().on_trial_complete(tune_controller, trial, result)
        self._gone(tune_controller, trial)

    def _gone(self, tune_controller: Any, trial: Trial) -> None:
        self._over.append(trial.trial_id)
        self._parked = [other for other in self._parked if other is not trial and other.status == Trial.RUNNING]
        living = self._seen(tune_controller)
        behind = [
            other
            for other in living.get_live_trials()
            if self._trial_state[other].last_train_time < self._next_perturbation_sync
        ]
        if not self._parked or (self._synch and behind):
            return
        if self._synch:
            last = self._parked[-1]
            super().on_trial_result(living, last, self._trial_state[last].last_result or {})
        self._release(tune_controller)

    def _release(self, tune_controller: Any, other_than: Trial | None = None) -> None:
        parked, self._parked = self._parked, []
        for trial in parked:
            if trial is not other_than and trial.status == Trial.RUNNING:
                tune_controller._schedule_trial_train(trial)

    def _checkpoint_or_exploit(
        self, trial: Trial, tune_controller: Any, upper_quantile: list[Trial], lower_quantile: list[Trial]
    ) -> None:
        """Ask the switchboard who gives to whom; a state is published at the end of every generation anyway."""
        if trial.is_finished():  # type: ignore[no-untyped-call]  # ray's own
            return
        if trial.trial_id in self._over:
            return
        score = self._trial_state[trial].last_score
        diverged = score is not None and score <= DIVERGED_SCORE
        if (trial in upper_quantile and not diverged) or not (trial in lower_quantile or diverged):
            return
        donors = sorted(number_of(donor) for donor in upper_quantile if donor is not trial)
        choice = ray.get(self._board().choose.remote(number_of(trial), donors))
        if choice.donor is not None:
            self._choice = choice
            donor = next(other for other in self._trial_state if number_of(other) == choice.donor)
            self._exploit(tune_controller, trial, donor)

    def _exploit(self, tune_controller: Any, trial: Trial, trial_to_clone: Trial) -> None:
        manager, state = trial.run_metadata.checkpoint_manager, self._trial_state[trial]
        assert manager is not None
        kept = manager._latest_checkpoint_result, state.last_perturbation_time, state.last_train_time
        assert self._choice is not None
        super()._exploit(self._seen(tune_controller), trial, trial_to_clone)
        self._took = True
        manager._latest_checkpoint_result, state.last_perturbation_time, state.last_train_time = kept
        ray.get(
            self._board().exploit.remote(
                number_of(trial), number_of(trial_to_clone), trial.config["values"], self._how, self._choice.gap
            )
        )

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the taker's own settings with the donor's values, explored inside the space.

        All members see the same images in the same order: with the same weights and values two would be one. So it is
        tried again, a few times, where somebody has these values already.
        """
        donor = self._trial_state[trial_to_clone].last_result or {}
        assert self._choice is not None
        values = self._choice.values  # what the weights were trained with: the donor may have taken others since
        taken = [other.config["values"] for other in self._trial_state if other is not trial]
        for attempt in range(EXPLORE_ATTEMPTS):
            rng = random.Random(f"{self._seed}/explore/{number_of(trial)}/{donor.get('generation')}/{attempt}")
            explored, self._how = self._space.explore(values, rng)
            if explored not in taken:
                break
        return {**trial.config, "values": explored}, {}

    def _board(self) -> Any:
        return switchboard(self._namespace)


def number_of(trial: Trial) -> int:
    """Return which member a trial is."""
    return int(trial.config["member"])
