"""The run on a Ray cluster: a TorchTrainer whose workers carry out ``shoal.execute``."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shoal.errors import ClusterError, ShoalError
from shoal.execute import Outcome, execute
from shoal.run import Run
from shoal.storage.location import Location
from shoal.world import PROCESS_GROUP_TIMEOUT_SEC, World
from shoal_ray.failures import CONTROLLER_FAILURES, FailureLog
from shoal_ray.resources import Resources
from shoal_ray.stop import StopSignals
from shoal_ray.tensorboard import TensorBoardSink

POLL_SEC = 0.2


@ray.remote(num_cpus=0)
class StopFlag:
    """Tells workers on other machines that the driver was asked to stop."""

    def __init__(self) -> None:
        self._asked = False

    def set(self) -> None:
        """Ask."""
        self._asked = True

    def is_set(self) -> bool:
        """Tell whether anyone asked."""
        return self._asked


def train_on_ray(
    run: Run,
    resources: Resources,
    *,
    max_failures: int,
    quarantine: bool = False,
    signals: StopSignals,
    on_wait: Callable[[], None],
    failures: Path,
) -> Outcome:
    """Train a run on the connected cluster; the calling thread stays free for signals and the display.

    Args:
        run: what to train; its directory is on storage that every node sees, or it is at a URI.
        resources: workers and what each of them gets.
        max_failures: how often lost workers are replaced before the run gives up.
        quarantine: whether to go on without rows that turn out to be damaged.
        signals: the first one makes the run stop at the next sample, the second abandons it.
        on_wait: called a few times a second.
        failures: the log of lost workers, on this machine.

    Raises:
        ShoalError: what a worker refused; nothing is retried then.
        ClusterError: workers were lost more often than ``max_failures``.
    """
    gpus = resources.gpus_per_worker or 0.0
    # On this very node: it must not die with a worker's.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    flag = StopFlag.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]  # ray.remote turns the class into an ActorClass
    trainer = TorchTrainer(
        worker,  # type: ignore[arg-type]  # ray.train's annotations describe V1: a worker may return a value
        train_loop_config={"run": str(run.place), "flag": flag, "quarantine": quarantine},
        # Workers that share a GPU cannot talk over nccl.
        torch_config=TorchConfig(backend="nccl" if gpus >= 1 else "gloo", timeout_s=PROCESS_GROUP_TIMEOUT_SEC),
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {}),
        ),
        run_config=RunConfig(
            # Ray resumes what it finds under a name it knows; our checkpoints are the truth, so no name comes twice.
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=str(run.path / "ray"),
            # Ray would wait for workers that never come, for ever.
            failure_config=FailureConfig(
                max_failures=max_failures,
                controller_failure_limit=CONTROLLER_FAILURES,  # type: ignore[call-arg]  # V1 annotations, as above
            ),
            callbacks=[FailureLog(failures)],  # type: ignore[list-item]  # V1 annotations, as above
        ),
    )
    ended: dict[str, Any] = {}
    thread = threading.Thread(target=_fit, args=(trainer, ended), daemon=True)
    thread.start()
    while thread.is_alive() and not signals.insisted.is_set():
        if signals.asked.is_set():
            flag.set.remote()
        on_wait()
        thread.join(POLL_SEC)
    on_wait()
    if thread.is_alive():
        raise SystemExit(signals.exit_code)
    return _outcome(ended)


def _fit(trainer: TorchTrainer, ended: dict[str, Any]) -> None:
    try:
        ended["value"] = trainer.fit().return_value  # type: ignore[attr-defined]  # V1 annotations, as above
    except Exception as error:  # handed to the main thread, which raises it
        ended["error"] = error


def _outcome(ended: dict[str, Any]) -> Outcome:
    error = ended.get("error")
    if isinstance(error, ray.train.TrainingFailedError):
        raise ClusterError(f"the run was given up: {error}") from error
    if error is not None:
        raise error
    value = ended["value"]
    if isinstance(value, ShoalError):
        raise value
    return Outcome(**value)


def worker(settings: dict[str, Any]) -> dict[str, Any] | ShoalError:
    """Carry out the run as one worker. A user's error is returned, not raised: Ray would retry it.

    Ticks are not passed to ``ray.train.report``: its queue holds one, which the controller takes at its next look at
    the workers, so that frequent ticks would wait for it; and the driver reads the run's own files anyway.
    """
    should_stop = FlagWatch(settings["flag"]) if ray.train.get_context().get_world_rank() == 0 else lambda: False
    try:
        world = World.joined(get_device())
        run = world.together(lambda: Run.open(Location.parse(settings["run"]), writes=True))
        outcome = execute(
            run,
            world,
            should_stop=should_stop,
            quarantine=settings["quarantine"],
            sinks=lambda samples: [TensorBoardSink(run, samples)],
        )
    except ShoalError as error:
        return error
    return vars(outcome)


class FlagWatch:
    """Looks at the stop flag from a thread of its own, so that a step never waits for the answer."""

    def __init__(self, flag: Any) -> None:
        self._flag = flag
        self._asked = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def __call__(self) -> bool:
        """Tell whether the driver was asked to stop."""
        return self._asked.is_set()

    def _watch(self) -> None:
        while not self._asked.wait(POLL_SEC):
            try:
                if ray.get(self._flag.is_set.remote()):
                    self._asked.set()
            except ray.exceptions.RayError:
                continue  # the driver is gone, and the run goes on without it; or it is out of reach for a moment
