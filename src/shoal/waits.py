"""How long a worker stood still because others had not come as far, or their figures were still on the way."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Waits:
    """Adds up the time that is spent in collectives, by the clock: for devices on which these block the host."""

    def __init__(self) -> None:
        self._sec = 0.0

    def begin(self) -> object:
        """Mark where waiting begins."""
        return time.perf_counter()

    def end(self, began: object) -> None:
        """Add what has passed since the mark."""
        assert isinstance(began, float)
        self._sec += time.perf_counter() - began

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block."""
        began = self.begin()
        yield
        self.end(began)

    @contextmanager
    def host_waiting(self) -> Iterator[None]:
        """Count the block, in which the host waits whatever the device does."""
        with self.waiting():
            yield

    def sec(self) -> float:
        """Return the sum since this was made, in seconds."""
        return self._sec


class StreamWaits(Waits):
    """The same on CUDA, where the host runs ahead: the time in which the stream that computes stood still.

    Events mark it on the stream itself. They are read once it has passed them; nobody waits for that.
    """

    def __init__(self) -> None:
        super().__init__()
        self._marked: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._free: list[torch.cuda.Event] = []

    def begin(self) -> object:
        """Mark where waiting begins, on the current stream."""
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's own
        event.record()
        return event

    def end(self, began: object) -> None:
        """Add what will have passed on the stream since the mark."""
        assert isinstance(began, torch.cuda.Event)
        ended = self.begin()
        assert isinstance(ended, torch.cuda.Event)
        self._marked.append((began, ended))
        self._read()

    @contextmanager
    def host_waiting(self) -> Iterator[None]:
        """Count nothing: the stream has work to do meanwhile, or shows the wait itself."""
        yield

    def sec(self) -> float:
        """Return the sum of what the stream has passed; after a synchronisation that is all."""
        self._read()
        return self._sec

    def _read(self) -> None:
        while self._marked and self._marked[0][1].query():  # type: ignore[no-untyped-call]  # torch's own
            began, ended = self._marked.popleft()
            self._sec += began.elapsed_time(ended) / 1e3
            self._free += (began, ended)


def waits_on(device: torch.device) -> Waits:
    """Return what counts the waits of a worker that computes on a device."""
    return StreamWaits() if device.type == "cuda" else Waits()
