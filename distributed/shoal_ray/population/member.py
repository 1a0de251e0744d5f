"""A member as Ray Tune sees it: a Trainable that has a long-lived Ray Train run trained, generation by generation."""

import secrets
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig

from shoal.errors import ClusterError, ShoalError
from shoal.run import FAILURES
from shoal.world import PROCESS_GROUP_TIMEOUT_SEC
from shoal_ray.population.directory import SearchDirectory
from shoal_ray.population.hosted import HostedTrainer, Tenancy, give_back
from shoal_ray.population.wire import switchboard
from shoal_ray.train import CONTROLLER_FAILURES, FailureLog

POLL_SEC = 1.0
DIVERGED_SCORE = -1e30
"""Worse than anything that is a number; Tune's own files could not hold an infinity."""
LEAVE_SEC = 60.0


class MemberTrainable(tune.Trainable):
    """One member: asks the switchboard for its turn, keeps its Train run alive, and passes results to Tune.

    ``config``: ``member``, ``values``, and what all share: ``search`` (directory), ``namespace``, ``workers``,
    ``cpus_per_worker``, ``gpus_per_worker``, ``max_failures``; ``start``: the generation that all begin with.
    """

    _done: int

    def setup(self, config: dict[str, Any]) -> None:
        """Speak for the member from now on; its workers start at once."""
        self._number: int = config["member"]
        self._board = switchboard(config["namespace"])
        self._incarnation = secrets.token_hex(4)
        self._done, left = ray.get(self._board.register.remote(self._number, self._incarnation))
        if left is not None:
            give_back(left)
        self._settings = dict(config)
        self._thread: threading.Thread | None = None
        self._ended: dict[str, Any] = {}
        self._first = True
        self._taking = threading.Lock()
        # At once: Tune asks for the first step only when every member is set up.
        threading.Thread(target=self._take_turn, daemon=True).start()

    def step(self) -> dict[str, Any]:
        """Return what the next generation comes to; the first time, what the last one came to, if there was one."""
        generation = self._settings.get("start", self._done) if self._first and self._done else self._done + 1
        self._first = False
        row = self._trained(max(1, generation))
        if row is None:
            return {"done": True, "generation": self._done, "score": DIVERGED_SCORE, "samples": 0}
        self._done = row["generation"]
        self.config = {**self.config, "values": row["values"]}  # what these weights were really trained with
        if not row["over"] and ray.get(self._board.yields.remote(self._number)):
            self._leave()
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
            if self._thread is None and not self._take_turn():
                return None
            if self._thread is not None and not self._thread.is_alive():
                self._raise_what_ended()

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
        ray.get(self._board.made_room.remote(self._number, self._incarnation))

    def _raise_what_ended(self) -> None:
        error = self._ended.get("error")
        self._thread = None
        if isinstance(error, ShoalError):
            ray.get(self._board.refuse.remote(str(error)))
            raise error
        raise ClusterError(f"the workers of member {self._number} were given up: {error!r}")

    def _fit(self) -> None:
        config = self._settings
        directory = SearchDirectory.open(Path(config["search"]))
        gpus = config["gpus_per_worker"] or 0.0
        from shoal_ray.population.worker import worker

        trainer = HostedTrainer(
            worker,  # type: ignore[arg-type]  # ray.train's annotations describe V1: a worker may return a value
            train_loop_config={
                "search": config["search"],
                "namespace": config["namespace"],
                "member": self._number,
                "incarnation": self._incarnation,
            },
            # Workers that share a GPU cannot talk over nccl.
            torch_config=TorchConfig(backend="nccl" if gpus >= 1 else "gloo", timeout_s=PROCESS_GROUP_TIMEOUT_SEC),
            scaling_config=ScalingConfig(
                num_workers=config["workers"],
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": config["cpus_per_worker"]} | ({"GPU": gpus} if gpus else {}),
            ),
            run_config=RunConfig(
                # Ray resumes what it finds under a name it knows; our checkpoints are the truth: no name comes twice.
                name=f"{self._number:03d}-{time.strftime('%Y%m%d-%H%M%S')}-{self._incarnation}-{secrets.token_hex(2)}",
                storage_path=str(directory.path / "ray"),
                failure_config=FailureConfig(
                    max_failures=config["max_failures"],
                    controller_failure_limit=CONTROLLER_FAILURES,  # type: ignore[call-arg]  # V1 annotations, as above
                ),
                callbacks=[FailureLog(directory.member(self._number) / FAILURES)],  # type: ignore[list-item]  # as above
            ),
        )
        trainer.tenancy = Tenancy(self._board, self._number, self._incarnation)
        try:
            value = trainer.fit().return_value  # type: ignore[attr-defined]  # V1 annotations, as above
            if isinstance(value, ShoalError):
                self._ended["error"] = value
        except Exception as error:  # handed to the thread that steps, which raises it
            self._ended["error"] = error
