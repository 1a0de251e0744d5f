"""A Ray Train run whose controller lives in the process that fits it, in a placement group of the caller's making."""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

NEEDLESS = ("PlacementGroupCleanerCallback", "DatasetsCallback")
"""Callbacks that start one more actor for every run: for what the caller does who makes the placement group, and for
Ray Data, which nobody uses."""

LEAVE_SEC = 5.0
"""For workers that have trained to the end to leave their process group."""

Reserve = Callable[[list[dict[str, float]], str], Any]
"""Makes the placement group of a group of workers, given what each of them needs and Ray's strategy."""


class HostedTrainer(DataParallelTrainer):
    """Ray's TorchTrainer without an actor for its controller, and without torch where that runs.

    An actor of its own, and torch in it, would take seconds of a processor before any worker starts; and here a run's
    workers end with the process that they belong to.

    Attributes:
        reserve: makes the placement group of every group of workers; whoever sets it gives it back.
    """

    reserve: Reserve

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        class Group(HostedGroup):
            reserve = staticmethod(self.reserve)

        settings["scaling_policy"] = Unannounced(self.scaling_config)  # type: ignore[arg-type]  # ray.train's annotations describe V1
        controller = TrainController(**settings)
        controller.worker_group_cls = Group
        asyncio.run(controller.run())  # type: ignore[no-untyped-call]  # ray's own
        return controller.get_result()

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ not in NEEDLESS]


class Unannounced(FixedScalingPolicy):
    """As many workers as were asked for. A pending placement group tells Ray's autoscaler enough.

    Ray's own policy also tells an actor of Ray Data, which it starts for that, and whose word outlives a killed run.
    """

    def _send_resource_request(self) -> None:
        """Tell nobody."""

    def _maybe_send_resource_request(self) -> None:
        """Tell nobody."""


class HostedGroup(WorkerGroup):
    """Ray's worker group, in a placement group of the caller's making; what is lost ends at once."""

    reserve: Reserve

    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> DefaultPlacementGroupHandle:
        bundles = [worker_group_context.resources_per_worker] * worker_group_context.num_workers
        return DefaultPlacementGroupHandle(self.reserve(bundles, worker_group_context.placement_strategy))

    def _init_train_context_on_workers(
        self, workers: list[Any], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        """Tell every worker its place. Ray names the actor of the controller too, which a driver is not."""
        ray.get(
            [
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    synchronization_actor=sync_actor,
                    storage_context=self._storage_context,
                    worker_callbacks=self._worker_callbacks_to_propagate,
                    controller_actor=None,
                    **{name: values[index] for name, values in train_context_args.items()},
                )
                for index, worker in enumerate(workers)
            ]
        )
        self._decorate_worker_log_file_paths(workers)

    def shutdown(self) -> None:
        """Let workers that are done leave in peace; where any was lost, end all of them.

        Ray asks them first, and waits for one that hangs.
        """
        status = self.get_latest_poll_status()
        if status is not None and not status.errors:
            super().shutdown()  # type: ignore[no-untyped-call]  # ray's own
            return
        state = self.get_worker_group_state()
        for actor in (*(worker.actor for worker in state.workers), state.sync_actor):
            with suppress(ray.exceptions.RayError):
                ray.kill(actor)
        state.placement_group_handle.shutdown()
        self._clear_state()  # type: ignore[no-untyped-call]  # ray's own


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
        leaving = worker_group.execute_async(leave, len(worker_group) > 1)
        ray.wait(leaving, num_returns=len(leaving), timeout=LEAVE_SEC)


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
