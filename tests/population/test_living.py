"""The controller as Ray's scheduler sees it: real trials, in every state that they can be in."""

from dataclasses import dataclass, field

import pytest
from ray.tune.experiment import Trial

from shoal_ray.population.scheduler import Living


@dataclass
class Controller:
    """What of Ray's controller holds the trials."""

    trials: list[Trial]
    paused: list[Trial] = field(default_factory=list)

    def get_live_trials(self) -> list[Trial]:
        return self.trials

    def get_trials(self) -> list[Trial]:
        return self.trials

    def pause_trial(self, trial: Trial) -> None:
        self.paused.append(trial)


@pytest.fixture
def controller() -> Controller:
    return Controller([Trial("living", stub=True, trial_id=str(number)) for number in range(4)])


def test_who_has_ended_is_not_waited_for_though_its_actor_has_not_stopped(controller: Controller) -> None:
    for trial, status in zip(
        controller.trials, (Trial.RUNNING, Trial.PENDING, Trial.TERMINATED, Trial.ERROR), strict=True
    ):
        trial.status = status
    ended: list[str] = []
    living = Living(controller, ended)
    assert [trial.trial_id for trial in living.get_live_trials()] == ["0", "1"]
    ended.append("0")  # its scheduler has been told
    assert [trial.trial_id for trial in living.get_live_trials()] == ["1"]
    assert living.get_trials() == controller.trials  # all else is the controller's own


def test_nobody_is_paused(controller: Controller) -> None:
    Living(controller, []).pause_trial(controller.trials[0], should_checkpoint=False)
    assert controller.paused == []
    with pytest.raises(AttributeError):
        _ = Living(controller, []).no_such_thing
