"""A member as Ray Tune sees it: a Trainable that has a long-lived Ray Train run trained, generation by generation.

Imports no torch, which would take seconds of a processor in every member's own process beside those of its workers.
"""

import secrets
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig

from shoal.errors import ShoalError
from shoal_ray.failures import CONTROLLER_FAILURES, FailureLog
from shoal_ray.hosted import HostedTrainer, ProcessGroupConfig
from shoal_ray.population.hosted import Tenancy, give_back
from shoal_ray.population.orders import DIVERGED_SCORE
from shoal_ray.population.wire import switchboard

POLL_SEC = 1.0
LEAVE_SEC = 600.0
"""For workers that leave: they write a checkpoint first."""


class MemberTrainable(tune.Trainable):
    """One member: asks the switchboard for its turn, keeps its Train run alive, and passes results to Tune.

    ``config``: ``member``, ``values``, and what all share: ``search`` (directory), ``namespace``, ``workers``,
    ``cpus_per_worker``, ``gpus_per_worker``, ``worker_env``, ``max_failures``, ``timeout_sec`` (of a process group),
    ``failures`` (the file of each member's lost workers), ``all_at_once``; ``start``: the generation that all begin
    with.
    """

    _done: int

    def setup(self, config: dict[str, Any]) -> None:
        """Speak for the member from now on; its workers start at once."""
        self._number: int = config["member"]
        self._board = switchboard(config["namespace"])
        self._incarnation = secrets.token_hex(4)
        self._done, left = ray.get(self._board.register.remote(self._number, self._incarnation))
        give_back(left)
        self._settings = dict(config)
        self._thread: threading.Thread | None = None
        self._ended: dict[str, Any] = {}
        self._first = True
        self._taking = threading.Lock()
        if config["all_at_once"]:  # Tune asks for the first step only when every member is set up
            threading.Thread(target=self._take_turn, daemon=True).start()

    def step(self) -> dict[str, Any]:
        """Return what the next generation comes to; the first time, what the last one came to, if there was one."""
        generation = self._settings.get("start", self._done) if self._first and self._done else self._done + 1
        self._first = False
        row = self._trained(max(1, generation))
        if row is None:
            self._leave()  # here, where nothing times it: Tune kills a member that takes long to end
            return {"done": True, "generation": self._done, "score": DIVERGED_SCORE, "samples": 0}
        self._done = row["generation"]
        self.config = {**self.config, "values": row["values"]}  # what these weights were really trained with
        if row["over"]:
            self._leave(final=True)
        fitness = row["fitness"]
        return {
            "generation": row["generation"],
            "samples": row["samples"],
            "fitness": fitness,
            "score": DIVERGED_SCORE if fitness is None else row["score"],
            "done": bool(row["over"]),
            "over": row["over"] or "",
        }

    def cleanup(self) -> None:
        """Let the workers go; a member that ended before the search did is dead."""
        self._leave(final=True)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: a member's state is in its own directory."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Load nothing."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Refuse: another trial is another member."""
        return False

    def _trained(self, generation: int) -> dict[str, Any] | None:
        """Have a generation trained, through whatever happens to the workers."""
        asked = self._board.train.remote(self._number, self._incarnation, generation)
        while True:
            ready, _ = ray.wait([asked], timeout=POLL_SEC)
            if ready:
                row: dict[str, Any] | None = ray.get(asked)
                return row
            if self._thread is not None and not self._thread.is_alive():
                self._thread = None
                if "error" in self._ended:
                    self._tell_why(self._ended.pop("error"))
                    return None
            if self._thread is None and not self._take_turn():
                return ray.get(asked)  # type: ignore[no-any-return]  # the search is over, or this member is

    def _take_turn(self) -> bool:
        with self._taking:
            if not ray.get(self._board.turn.remote(self._number, self._incarnation)):
                return False
            if self._thread is None:
                self._ended = {}
                self._thread = threading.Thread(target=self._fit, daemon=True)
                self._thread.start()
            return True

    def _leave(self, *, final: bool = False) -> None:
        """Have the workers save what there is and end, and give the turn to who waits."""
        ray.get(self._board.leave.remote(self._number, self._incarnation, final=final))
        if self._thread is not None:
            self._thread.join(LEAVE_SEC)
            self._thread = None

    def _tell_why(self, error: Exception) -> None:
        """Tell the switchboard why the workers have ended and are not started again."""
        if isinstance(error, ShoalError):
            ray.get(self._board.refuse.remote(str(error)))
        else:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            ray.get(self._board.give_up.remote(self._number, self._incarnation, why))

    def _fit(self) -> None:
        config = self._settings
        gpus = config["gpus_per_worker"] or 0.0
        trainer = HostedTrainer(
            run_worker,
            train_loop_config={
                "search": config["search"],
                "namespace": config["namespace"],
                "member": self._number,
                "incarnation": self._incarnation,
            },
            # Workers that share a GPU cannot talk over nccl.
            backend_config=ProcessGroupConfig("nccl" if gpus >= 1 else "gloo", config["timeout_sec"]),
            scaling_config=ScalingConfig(
                num_workers=config["workers"],
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": config["cpus_per_worker"]} | ({"GPU": gpus} if gpus else {}),
            ),
            run_config=RunConfig(
                # Ray resumes what it finds under a name it knows; our checkpoints are the truth: no name comes twice.
                name=f"{self._number:03d}-{time.strftime('%Y%m%d-%H%M%S')}-{self._incarnation}-{secrets.token_hex(2)}",
                storage_path=str(Path(config["search"]) / "ray"),
                failure_config=FailureConfig(
                    max_failures=config["max_failures"],
                    controller_failure_limit=CONTROLLER_FAILURES,  # type: ignore[call-arg]  # V1 annotations
                ),
                worker_runtime_env=config["worker_env"],
                callbacks=[FailureLog(Path(config["failures"][self._number]))],  # type: ignore[list-item]  # as above
            ),
        )
        trainer.reserve = Tenancy(self._board, self._number, self._incarnation).reserve
        try:
            value = trainer.fit().return_value  # type: ignore[attr-defined]  # V1 annotations, as above
            if isinstance(value, ShoalError):
                self._ended["error"] = value
        except Exception as error:  # handed to the thread that steps
            self._ended["error"] = error
        finally:
            ray.get(self._board.made_room.remote(self._number, self._incarnation))


def run_worker(settings: dict[str, Any]) -> Any:
    """Carry out a member's orders as one of its workers, where torch is imported."""
    from shoal_ray.population.worker import worker

    return worker(settings)
