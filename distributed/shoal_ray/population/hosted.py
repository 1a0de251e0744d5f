"""A member's Ray Train run, hosted by the member's own process, which needs no torch for it."""

import asyncio
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import get_placement_group, placement_group, remove_placement_group

NEEDLESS = ("PlacementGroupCleanerCallback", "DatasetsCallback")
"""Callbacks that start one more actor for every run: for what `Tenancy` does, and for Ray Data, which nobody uses."""


class HostedTrainer(DataParallelTrainer):
    """Ray's TorchTrainer for a population: its controller lives in the process that fits it, and imports no torch.

    An actor of its own, and torch in it, would take seconds of a processor for every member, before any trains; and
    here a run's workers end with the member that they belong to.
    """

    tenancy: "Tenancy"

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        class MemberGroup(TenantGroup):
            tenancy = self.tenancy

        controller = TrainController(**settings)
        controller.worker_group_cls = MemberGroup
        asyncio.run(controller.run())  # type: ignore[no-untyped-call]  # ray's own
        return controller.get_result()

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ not in NEEDLESS]


@dataclass
class ProcessGroupConfig(BackendConfig):
    """Ray's TorchConfig, whose module imports torch.

    Attributes:
        backend: gloo or nccl.
        timeout_s: after which a silent peer is lost.
    """

    backend: str = "gloo"
    timeout_s: int = 300

    @property
    def backend_cls(self) -> type[Backend]:
        """What starts the process group."""
        return ProcessGroupBackend


class ProcessGroupBackend(Backend):
    """Has every worker join a torch process group, by Ray's own functions."""

    share_cuda_visible_devices: bool = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Choose an address and have all join."""
        assert isinstance(backend_config, ProcessGroupConfig)
        address, port = worker_group.execute_single(0, get_address_and_port)
        size = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, join, address, port, backend_config.backend, rank, size, backend_config.timeout_s
                )
                for rank in range(size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Have all leave."""
        worker_group.execute(leave, len(worker_group) > 1)


def join(address: str, port: int, backend: str, rank: int, size: int, timeout_s: int) -> None:
    """Join the process group, in a worker."""
    from ray.train.torch import config

    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    config._set_torch_distributed_env_vars()  # type: ignore[no-untyped-call]  # ray's own
    config._setup_torch_process_group(backend, rank, size, "env://", timeout_s)


def leave(destroy: bool) -> None:
    """Leave the process group, in a worker."""
    from ray.train.torch import config

    config._shutdown_torch(destroy_process_group=destroy)  # type: ignore[no-untyped-call]  # ray's own


class Tenancy:
    """Names the placement groups of a member's workers, and tells the switchboard of each before there is one.

    Ray keeps the placement group of an actor that was killed as long as its job lives: nobody else could use what it
    reserves. The member's next incarnation gives it back, whenever the last one died.
    """

    def __init__(self, board: Any, member: int, incarnation: str) -> None:
        self._board, self._me = board, (member, incarnation)

    def announce(self) -> str:
        """Return the name of the next group."""
        member, incarnation = self._me
        name = f"shoal-{member}-{incarnation}-{secrets.token_hex(4)}"
        ray.get(self._board.lives_in.remote(member, incarnation, name))
        return name


class TenantGroup(WorkerGroup):
    """Ray's worker group in a placement group that was announced."""

    tenancy: Tenancy

    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> DefaultPlacementGroupHandle:
        group = placement_group(
            [worker_group_context.resources_per_worker] * worker_group_context.num_workers,
            strategy=worker_group_context.placement_strategy,
            bundle_label_selector=worker_group_context.label_selector,
            name=self.tenancy.announce(),
        )
        return DefaultPlacementGroupHandle(group)


def give_back(names: Sequence[str]) -> None:
    """Remove the placement groups that a dead member has left."""
    for name in names:
        with suppress(ValueError):  # there is none of this name, or none any more
            remove_placement_group(get_placement_group(name))
