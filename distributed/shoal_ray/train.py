"""The run on a Ray cluster: Ray Train around ``shoal.execute``."""

import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import get_device
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shoal.errors import ShoalError
from shoal.execute import Outcome, execute
from shoal.loop import Tick
from shoal.run import Run
from shoal.storage.location import Location
from shoal.watchdog import Watchdog
from shoal.worker_log import WorkerLog
from shoal.world import PROCESS_GROUP_TIMEOUT_SEC, World
from shoal_ray.attempts import Attempts
from shoal_ray.desk import Desk, Errand
from shoal_ray.failures import FailureLog
from shoal_ray.hosted import HostedTrainer, ProcessGroupConfig
from shoal_ray.preflight import Ready
from shoal_ray.prometheus import PrometheusSink
from shoal_ray.stop import StopSignals
from shoal_ray.tensorboard import TensorBoardSink


def train_on_ray(
    run: Run,
    ready: Ready,
    *,
    max_failures: int,
    hang_timeout_sec: float = 0.0,
    quarantine: bool = False,
    signals: StopSignals,
    on_wait: Callable[[], None],
    tell: Callable[[str], None],
    failures: Path,
) -> Outcome:
    """Train a run on the connected cluster; the calling thread stays free for signals and the display.

    Args:
        run: what to train; its directory is on storage that every node sees, or it is at a URI.
        ready: workers, what each of them gets, and how they start.
        max_failures: how often lost workers are replaced before the run gives up.
        hang_timeout_sec: after which a worker without progress counts as lost; 0: never.
        quarantine: whether to go on without rows that turn out to be damaged.
        signals: the first one makes the run stop at the next sample, the second abandons it.
        on_wait: called a few times a second.
        tell: shows the user a line.
        failures: the log of lost workers, on this machine.

    Raises:
        ShoalError: what a worker refused; nothing is retried then.
        ClusterError: workers were lost more often than ``max_failures``.
    """
    resources = ready.resources
    gpus = resources.gpus_per_worker or 0.0
    # On this very node: it must not die with a worker's.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk = Desk.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]  # ray.remote turns the class into an ActorClass
    settings = {"run": str(run.place), "desk": desk, "quarantine": quarantine, "hang_timeout_sec": hang_timeout_sec}

    # Ray's own notes, which nobody reads; not beside the run, whose storage may be gone for a while.
    with tempfile.TemporaryDirectory(prefix="shoal-ray-", ignore_cleanup_errors=True) as notes:

        def begin(number: int, workers: int, group: PlacementGroup, log: FailureLog) -> HostedTrainer:
            trainer = HostedTrainer(
                worker,
                train_loop_config={**settings, "attempt": number},
                # Workers that share a GPU cannot talk over nccl.
                backend_config=ProcessGroupConfig("nccl" if gpus >= 1 else "gloo", PROCESS_GROUP_TIMEOUT_SEC),
                scaling_config=ScalingConfig(
                    num_workers=workers,
                    use_gpu=gpus > 0,
                    resources_per_worker={"CPU": resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {}),
                ),
                run_config=RunConfig(
                    # Ray resumes what it finds under a name it knows; our checkpoints are the truth: no name twice.
                    name=f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}",
                    storage_path=notes,
                    failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),  # type: ignore[call-arg]  # as above
                    callbacks=[log],  # type: ignore[list-item]  # V1 annotations, as above
                    worker_runtime_env=dict(ready.worker_env),
                ),
            )
            trainer.reserve = lambda bundles, strategy: group
            return trainer

        value = Attempts(
            begin,
            resources,
            desk,
            max_failures=max_failures,
            failures=failures,
            signals=signals,
            on_wait=on_wait,
            tell=tell,
        ).run()
    if isinstance(value, ShoalError):
        raise value
    return Outcome(**value)


def worker(settings: dict[str, Any]) -> dict[str, Any] | ShoalError:
    """Carry out the run as one worker. A user's error is returned, not raised: Ray would retry it.

    Ticks are not passed to ``ray.train.report``: its queue holds one, which the controller takes at its next look at
    the workers, so that frequent ticks would wait for it; and the driver reads the run's own files anyway.
    """
    if ray.train.get_context().get_world_rank() > 0:
        return carry_out(settings, None)
    with Errand(settings["desk"], settings["attempt"]) as errand:
        return carry_out(settings, errand)


def carry_out(settings: dict[str, Any], errand: Errand | None) -> dict[str, Any] | ShoalError:
    """Carry out the run as the worker with the errand to the driver's desk, or as another one."""
    try:
        world = World.joined(get_device())
        run = world.together(lambda: Run.open(Location.parse(settings["run"]), writes=True))
        with Watchdog(settings["hang_timeout_sec"]) as watchdog:

            def progress() -> None:
                watchdog.beat()
                if errand:
                    errand.trains()

            def ticked(tick: Tick) -> None:
                if tick.last:
                    watchdog.close()  # what is left is to be written and uploaded, for as long as that takes

            outcome = execute(
                run,
                world,
                should_stop=errand.should_stop if errand else bool,
                quarantine=settings["quarantine"],
                sinks=lambda samples: [TensorBoardSink(run, samples), WorkerLog(run, samples), PrometheusSink(run)],
                on_tick=ticked,
                on_progress=progress,
                **({"on_trouble": errand.note} if errand else {}),
            )
    except ShoalError as error:
        return error
    return vars(outcome)
