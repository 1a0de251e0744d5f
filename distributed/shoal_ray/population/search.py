"""A whole search on the connected cluster: Ray Tune over members, watched from here."""

import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from shoal.data import DataSet
from shoal.errors import ClusterError, RunError
from shoal.run import FAILURES, Run
from shoal.world import PROCESS_GROUP_TIMEOUT_SEC
from shoal_ray.population.capacity import Plan
from shoal_ray.population.directory import SearchDirectory
from shoal_ray.population.ending import DIVERGED
from shoal_ray.population.journal import Journal, events
from shoal_ray.population.standing import Standing, standings
from shoal_ray.population.switchboard import GIVEN_UP, Switchboard
from shoal_ray.population.wire import SWITCHBOARD
from shoal_ray.stop import StopSignals

POLL_SEC = 0.5
NEXT_TO_NOTHING = {"memory": 1.0}
"""What Tune reserves for a member itself, in bytes: it wants something, and the workers reserve what they need."""
MEMBER_FAILURES = 10
"""How often a member's own process may be lost."""


@dataclass(frozen=True)
class SearchOutcome:
    """How a search ended.

    Attributes:
        stopped: why, if before its end; None at its end.
        standings: where every member stands.
    """

    stopped: str | None
    standings: Mapping[int, Standing]


def bear(directory: SearchDirectory) -> dict[int, Standing]:
    """Write down the first members, and give each a run directory, unless there are some; return where all stand."""
    search, data = directory.search, DataSet.open(directory.data)
    journal = Journal(directory.lineage)
    born = {row["member"] for row in events(journal.rows, "birth")}
    plugin = directory.path / "plugin.py"
    for number, values in enumerate(search.space.sample(search.population, search.seed)):
        path = directory.member(number)
        if not (path / "config.yaml").is_file():
            config = directory.member_config(number, values, data)
            facts = {"member": number, "values": values, "search": str(directory.path)}
            Run.create(path, config, directory.data, plugin=plugin if plugin.is_file() else None, facts=facts)
        if number not in born:
            journal.append({"event": "birth", "member": number, "samples": 0, "new": values, "time": time.time()})
    population = Journal(directory.population)
    found = standings(journal.rows, population.rows)
    journal.close()
    population.close()
    return found


def run_search(
    directory: SearchDirectory,
    plan: Plan,
    worker_env: Mapping[str, str],
    *,
    max_failures: int,
    signals: StopSignals,
    on_look: Callable[[Mapping[int, Standing]], None],
) -> SearchOutcome:
    """Carry on a search to its end, or until it is asked to stop.

    Args:
        directory: of the search; on storage that every node sees.
        plan: what members get, and how many train at once.
        worker_env: Ray's runtime environment of their workers.
        max_failures: how often a member's lost workers are replaced.
        signals: the first one makes every member save itself, the second abandons them.
        on_look: told where everyone stands, about twice a second.

    Raises:
        ShoalError: what a member refused.
        ClusterError: a member was given up.
    """
    known = bear(directory)
    namespace = ray.get_runtime_context().namespace
    board: Any = (
        ray.remote(Switchboard)
        .options(name=SWITCHBOARD, num_cpus=0, max_concurrency=1000, max_restarts=-1, max_task_retries=-1)
        .remote(str(directory.path), plan.slots, time.time())
    )
    ended: dict[str, Any] = {}
    told = (directory, plan, worker_env, known, namespace, max_failures, ended)
    thread = threading.Thread(target=_tune, args=told, daemon=True)
    thread.start()
    while thread.is_alive() and not signals.insisted.is_set():
        if signals.asked.is_set():
            board.stop.remote("it was asked to")
        on_look(ray.get(board.look.remote())[0])
        thread.join(POLL_SEC)
    standing, stopping, refusal = ray.get(board.look.remote())
    on_look(standing)
    if thread.is_alive():
        raise SystemExit(signals.exit_code)
    if refusal is not None:
        raise RunError(refusal)
    if stopping == DIVERGED:
        raise RunError(
            f"{DIVERGED} by sample {max(found.samples for found in standing.values()):,}; narrow the space (a lower"
            " optim.lr), set optim.clip, or give exploits a chance with a smaller generation_samples"
        )
    if "error" in ended:
        raise ClusterError(f"the search was given up: {ended['error']}; --resume goes on") from ended["error"]
    lost = {number: found.dead for number, found in standing.items() if (found.dead or "").startswith(GIVEN_UP)}
    if lost and len(lost) == sum(found.dead is None or number in lost for number, found in standing.items()):
        number, why = next(iter(lost.items()))
        raise ClusterError(
            f"the workers of {len(lost)} member(s) were lost more often than --max-failures allows, e.g. member"
            f" {number}, {why}; --resume goes on"
        )
    return SearchOutcome(stopping, standing)


def _tune(
    directory: SearchDirectory,
    plan: Plan,
    worker_env: Mapping[str, str],
    known: Mapping[int, Standing],
    namespace: str,
    max_failures: int,
    ended: dict[str, Any],
) -> None:
    # Its own loggers would write every trial's results twice more, and its reporter over our view.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a lost member's traceback; the view tells of it
    warnings.filterwarnings("ignore", message="Consider boosting PBT performance")  # members are never paused
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
    os.environ.setdefault("TUNE_RESULT_BUFFER_LENGTH", "1")
    from ray import tune

    from shoal_ray.population.member import MemberTrainable

    search, resources = directory.search, plan.resources
    alive = {number: found for number, found in known.items() if not found.dead or found.dead.startswith(GIVEN_UP)}
    if not alive:
        return
    space: dict[str, Any] = {
        "member": tune.grid_search(sorted(alive)),
        "values": tune.sample_from(lambda spec: dict(alive[spec["member"]].values)),
        "search": str(directory.path),
        "namespace": namespace,
        "workers": resources.workers,
        "cpus_per_worker": resources.cpus_per_worker,
        "gpus_per_worker": resources.gpus_per_worker,
        "max_failures": max_failures,
        "worker_env": dict(worker_env),
        "all_at_once": plan.slots >= len(alive),
        "timeout_sec": PROCESS_GROUP_TIMEOUT_SEC,
        "failures": {number: str(directory.member(number) / FAILURES) for number in alive},
    }
    start = max(standing.generation for standing in alive.values())
    if search.algorithm == "pbt" and search.synchronous:
        space["start"] = start
    tuner = tune.Tuner(
        tune.with_resources(MemberTrainable, NEXT_TO_NOTHING),
        param_space=space,
        tune_config=tune.TuneConfig(
            scheduler=_scheduler(directory, namespace, start),
            max_concurrent_trials=plan.slots if search.algorithm != "pbt" else None,
        ),
        run_config=tune.RunConfig(
            name=time.strftime("tune-%Y%m%d-%H%M%S"),
            storage_path=str(directory.path / "ray"),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=MEMBER_FAILURES),
            verbose=0,
        ),
    )
    try:
        results = tuner.fit()
        if results.errors:
            ended["error"] = results.errors[0]
    except Exception as error:  # handed to the main thread, which raises it
        ended["error"] = error


def _scheduler(directory: SearchDirectory, namespace: str, start: int) -> Any:
    search = directory.search
    if search.algorithm == "pbt":
        from shoal_ray.population.scheduler import InPlacePbt

        return InPlacePbt(
            search.space,
            seed=search.seed,
            namespace=namespace,
            quantile=search.quantile,
            synchronous=search.synchronous,
            start=start,
        )
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

    if search.algorithm == "random":
        return FIFOScheduler()  # type: ignore[no-untyped-call]  # ray's own
    return AsyncHyperBandScheduler(
        time_attr="generation",
        metric="score",
        mode="max",
        max_t=search.generations,
        grace_period=search.grace_generations,
        reduction_factor=search.reduction_factor,
    )
