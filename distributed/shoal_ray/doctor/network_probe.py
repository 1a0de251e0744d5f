"""What nodes do to measure the network between them: collectives of torch, as training does. Sent to them as it is."""

import time
from datetime import timedelta
from statistics import median
from typing import Any

TIMEOUT_SEC = 30


class NetworkProbe:
    """One worker of a process group with one worker per node."""

    def __init__(self) -> None:
        self._store: Any = None
        self._device = "cpu"

    def listen(self, address: str, size: int) -> int:
        """Open the store where the workers meet, on the first node; return its port."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch's own

        waits = timedelta(seconds=TIMEOUT_SEC)
        self._store = TCPStore(address, 0, size, is_master=True, timeout=waits, wait_for_workers=False)
        return int(self._store.port)

    def join(self, rank: int, size: int, address: str, port: int, backend: str) -> None:
        """Meet the others, and let connections be made."""
        import torch
        import torch.distributed as dist
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch's own

        torch.set_num_threads(1)
        waits = timedelta(seconds=TIMEOUT_SEC)
        if backend == "nccl":
            self._device = "cuda"
        store = self._store or TCPStore(address, port, size, is_master=False, timeout=waits)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=waits)
        self.all_reduce(4, 1)

    def all_reduce(self, num_bytes: int, repeats: int) -> float:
        """Return the seconds that one all-reduce of so many bytes takes, a mean over some in a row."""
        import torch
        import torch.distributed as dist

        data = torch.zeros(max(1, num_bytes // 4), device=self._device)
        dist.barrier()
        began = time.perf_counter()
        for _ in range(repeats):
            dist.all_reduce(data)
        if self._device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / repeats

    def ping_pong(self, peer: int, serves: bool, num_bytes: int, repeats: int) -> float:
        """Return the seconds that so many bytes take to a peer and back, the median of some; who serves sends first."""
        import torch
        import torch.distributed as dist

        data = torch.zeros(max(1, num_bytes // 4), device=self._device)
        turns = (dist.send, dist.recv) if serves else (dist.recv, dist.send)
        taken = []
        for _ in range(repeats):
            began = time.perf_counter()
            for turn in turns:
                turn(data, peer)
            if self._device == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
        return median(taken)
