"""A member's Ray Train run, hosted by the member's own process."""

import asyncio
from typing import Any

import ray
from ray._raylet import PlacementGroupID
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.util.placement_group import PlacementGroup, remove_placement_group

NEEDLESS = ("PlacementGroupCleanerCallback", "DatasetsCallback")
"""Callbacks that start one more actor for every run: for what `Tenancy` does, and for Ray Data, which nobody uses."""


class HostedTrainer(TorchTrainer):
    """A TorchTrainer whose controller lives in the process that fits it.

    An actor of its own would be one more process that imports torch for every member of a population; and here a run's
    workers end with the member that they belong to.
    """

    tenancy: "Tenancy"

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        controller = TrainController(**settings)
        asyncio.run(controller.run())  # type: ignore[no-untyped-call]  # ray's own
        return controller.get_result()

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]  # V1 annotations
        return [*(callback for callback in callbacks if type(callback).__name__ not in NEEDLESS), self.tenancy]


class Tenancy(WorkerGroupCallback):
    """Tells the switchboard which placement group a member's workers live in.

    Ray keeps the placement group of an actor that was killed as long as its job lives: nobody else could use what it
    reserves. The member's next incarnation gives it back.
    """

    def __init__(self, board: Any, member: int, incarnation: str) -> None:
        self._board, self._me = board, (member, incarnation)

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Register the placement group."""
        group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        ray.get(self._board.lives_in.remote(*self._me, group.id.hex()))


def give_back(group: str) -> None:
    """Remove the placement group that a dead member has left."""
    remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group)))
