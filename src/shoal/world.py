"""The workers that train together: rank, size, device, and what they say to each other.

The only file that imports ``torch.distributed``. Alone, every answer is the identity, so no caller asks for its rank to
decide what to do with a number.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel

from shoal.errors import ShoalError
from shoal.waits import Waits, waits_on

Result = TypeVar("Result")

PROCESS_GROUP_TIMEOUT_SEC = 300
"""A peer that says nothing for so long is lost; torch's own 30 minutes would hide a node behind a cut cable. A process
that dies is noticed at once. What one of them does while the others wait has to fit in, or to be done by rounds."""


@dataclass(frozen=True)
class World:
    """One worker's place among those that train together.

    Attributes:
        rank: of this worker.
        size: how many there are.
        device: that this worker computes on.
        waits: how long it has waited for the others.
    """

    rank: int
    size: int
    device: torch.device
    # Votes go over gloo beside the gradients' own group: they need no GPU, so asking never waits for one.
    _votes: Any = None
    waits: Waits = field(default_factory=Waits, compare=False, repr=False)

    @classmethod
    def local(cls, device: torch.device | str | None = None) -> "World":
        """Return the world of one worker: this process."""
        return cls(rank=0, size=1, device=torch.device(device) if device else best_device())

    @classmethod
    def joined(cls, device: torch.device) -> "World":
        """Return this worker's place in the process group that a launcher has already initialised."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return cls.local(device)
        votes = dist.new_group(backend="gloo", timeout=timedelta(seconds=PROCESS_GROUP_TIMEOUT_SEC))
        return cls(dist.get_rank(), dist.get_world_size(), device, votes, waits_on(device))

    @property
    def first(self) -> bool:
        """Whether this is the worker that writes files."""
        return self.rank == 0

    def slice(self, batch: int) -> slice:
        """Return the rows of a global batch that this worker takes: contiguous, sizes differing by at most one."""
        return slice(batch * self.rank // self.size, batch * (self.rank + 1) // self.size)

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over all workers; every worker gets the same tensor. No gradient flows through it."""
        if self.size == 1:
            return value.detach()
        total = value.detach().clone()
        with self.waits.waiting():
            dist.all_reduce(total)
        return total

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a loss, averaged over the workers for the networks of ``wrap``.

        What comes after this worker's own share of the work is counted as waiting: DDP then waits for what is still on
        the way. It asks autograd to do so behind the callback that marks that moment, which stands in the queue before
        the first gradient is computed.
        """
        if self.size == 1:
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            return
        began: list[object] = []
        queue = Variable._execution_engine.queue_callback
        loss.register_hook(lambda _: queue(lambda: began.append(self.waits.begin())))  # type: ignore[no-untyped-call]
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        self.waits.end(began[0])

    def barrier(self) -> None:
        """Wait until every worker has come here."""
        if self.size > 1:
            dist.barrier(group=self._votes)

    def vote(self, choice: int) -> "Vote":
        """Start to ask all workers for a number; the answer, the largest of them, is awaited with ``Vote.result``."""
        ballot = torch.tensor(choice)
        if self.size == 1:
            return Vote(ballot, None, self.waits)
        return Vote(ballot, dist.all_reduce(ballot, dist.ReduceOp.MAX, group=self._votes, async_op=True), self.waits)

    def together(self, work: Callable[[], Result]) -> Result:
        """Do ``work`` on every worker; where a user's error comes up on any of them, raise it on all.

        Without this the others would wait for the one that failed until the process group times out.
        """
        try:
            result = work()
        except ShoalError as error:
            self.raise_first(error)
            raise
        self.raise_first(None)
        return result

    def gather(self, value: Result) -> list[Result]:
        """Return every worker's value, in the order of ranks, on every worker; every worker must call."""
        values = [value]
        if self.size > 1:
            values *= self.size
            with self.waits.host_waiting():
                dist.all_gather_object(values, value, group=self._votes)
        return values

    def raise_first(self, error: ShoalError | None) -> None:
        """Raise the first worker's error that is not None on every worker; every worker must call."""
        for found in self.gather(error):
            if found is not None:
                raise found

    def first_says(self, work: Callable[[], Result]) -> Result:
        """Do ``work`` on the first worker and return its result on all; a user's error is raised on all."""
        result = self.together(lambda: work() if self.first else None)
        if self.size == 1:
            return cast(Result, result)
        told = [result]
        dist.broadcast_object_list(told, src=0, group=self._votes)
        return cast(Result, told[0])

    def wrap(self, net: nn.Module) -> nn.Module:
        """Wrap one trained network in DDP; alone, return it as it is.

        Buffers are not broadcast, since each worker computes the same ones or, with plain batch norm, its own. One
        bucket, because the networks are small next to the cost of a message.
        """
        if self.size == 1:
            return net
        return DistributedDataParallel(
            net,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            bucket_cap_mb=256,
        )


@dataclass(frozen=True)
class Vote:
    """A question to all workers that travels while they compute."""

    _ballot: Tensor
    _work: Any
    _waits: Waits

    def result(self) -> int:
        """Wait for the answer: the largest number that any worker gave, the same on all."""
        if self._work is not None:
            with self._waits.host_waiting():
                self._work.wait()
        return int(self._ballot.item())


def best_device() -> torch.device:
    """Return the accelerator of this process if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@contextmanager
def launched_world() -> Iterator[World]:
    """Join the process group that torchrun describes in the environment; without one, be alone."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World.local()
        return
    device = best_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Two processes on one GPU cannot talk over nccl.
    own_gpu = device.type == "cuda" and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= torch.cuda.device_count()
    backend = "nccl" if own_gpu else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=PROCESS_GROUP_TIMEOUT_SEC))
    try:
        yield World.joined(device)
    finally:
        dist.destroy_process_group()
