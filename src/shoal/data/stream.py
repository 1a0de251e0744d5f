"""The endless stream of training batches of one rank.

Images are uint8 NCHW at rest and on their way to the device; they become float in the preset's range there, just before
the networks.
"""

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.data.balance import Balance, quotas_of
from shoal.data.dataset import DataSet
from shoal.data.order import ORDER_VERSION, Order
from shoal.data.quarantine import Quarantine, QuarantinedBlock
from shoal.errors import DataError

Ids = NDArray[np.int64]

PREFETCHED_READS = 3
READ_BYTES = 4 << 20
"""So many pixels are read at a time: the hand-over between threads costs as much as a small batch does."""


@dataclass(frozen=True, slots=True)
class RawBatch:
    """One rank's rows of global batch ``index``.

    ``images`` is uint8 [n, C, H, W], ``labels`` int64 [n] (-1 for none) or None, ``ids`` int64 [n] (global ids). The
    tensors are the consumer's to keep.
    """

    index: int
    images: Tensor
    labels: Tensor | None
    ids: NDArray[np.int64]


class Stream:
    """Iterate over this rank's rows of the global batches, for ever.

    Global batch k holds positions ``k * batch .. (k + 1) * batch - 1`` of the split's order and so may cross epochs;
    ``rows`` is the slice of it that this rank gets. ``position`` counts samples of the whole world and is a multiple of
    ``batch``. A thread reads ahead; ``state()`` speaks of what the consumer got, not of what was read ahead. Close the
    stream, or use it as a context manager, to end the thread. ``waited_sec`` sums up how long the consumer had to wait.
    """

    def __init__(
        self,
        dataset: DataSet,
        *,
        split: str,
        batch: int,
        seed: int,
        rows: slice,
        position: int = 0,
        shuffle_window_blocks: int = 16,
        balance: Balance = "none",
        quarantine: Iterable[Sequence[int]] = (),
        pin_memory: bool | None = None,
    ) -> None:
        """Start reading ahead.

        ``balance`` says how often each class is drawn, ``quarantine`` which blocks are not read, as ``state`` does.
        ``pin_memory`` None means: where CUDA is available.
        """
        if batch < 1 or shuffle_window_blocks < 1:
            raise DataError(f"batch {batch} and shuffle window {shuffle_window_blocks} must both be at least 1")
        if position < 0 or position % batch:
            raise DataError(
                f"position {position} is not a multiple of batch {batch}: a stream starts between two global batches; "
                "resume with the batch size that the run was started with"
            )
        first, last, step = rows.indices(batch)
        if first >= last or step != 1:
            raise DataError(f"rows {rows.start}:{rows.stop} of batch {batch} are none; use batch >= number of workers")
        self.dataset = dataset
        self.split = split
        self.batch = batch
        self.seed = seed
        self.window_blocks = shuffle_window_blocks
        self._rows = range(first, last)
        quotas = quotas_of(dataset, split, balance)
        self.balance = quotas.name if quotas else "none"
        self.waited_sec = 0.0
        self._order = Order(dataset.fingerprint, seed, dataset.blocks(split), shuffle_window_blocks, quotas)
        self._quarantine = Quarantine(dataset, split, quarantine)
        self._window = (-1, -1)  # being read, while the next one is fetched from where it may be far away
        self._position = position
        self._pin = torch.cuda.is_available() if pin_memory is None else pin_memory
        # One worker: batches are read in order, and the order's caches have one user.
        self._reader = ThreadPoolExecutor(1, "shoal-stream", *_on_this_device(self._pin))
        self._ahead: deque[Future[list[RawBatch | DataError]]] = deque()
        self._ready: deque[RawBatch | DataError] = deque()  # the batches of the read that was ahead of all others
        small = dataset.manifest.encoding == "raw"
        self._most_per_read = max(1, READ_BYTES // (len(self._rows) * dataset.manifest.row_bytes)) if small else 1
        self._begin_at(position // batch)
        self._closed = False
        self._read_ahead()

    @property
    def position(self) -> int:
        """Return the position, in samples of the whole world, of the batch that the consumer gets next."""
        return self._position

    @property
    def quarantined(self) -> list[QuarantinedBlock]:
        """Return the blocks that are in quarantine."""
        return self._quarantine.blocks()

    def state(self) -> dict[str, Any]:
        """Return what ``resume`` needs to go on exactly here; the same on all ranks, fit for JSON and under 1 KB."""
        state = {
            "fingerprint": self.dataset.fingerprint,
            "order_version": ORDER_VERSION,
            "split": self.split,
            "seed": self.seed,
            "batch": self.batch,
            "window_blocks": self.window_blocks,
            "position": self._position,
        }
        # Only where there is something to say, so that an older reader refuses no state that it would get right.
        if self.balance != "none":
            state["balance"] = self.balance
        if self._quarantine.entries:
            state["quarantine"] = [list(entry) for entry in self._quarantine.entries]
        return state

    @classmethod
    def resume(
        cls,
        dataset: DataSet,
        state: Mapping[str, Any],
        *,
        rows: slice,
        balance: Balance = "none",
        pin_memory: bool | None = None,
    ) -> Self:
        """Return the stream that goes on where ``state`` was taken; ``rows`` may differ from then.

        ``balance`` must be the one that the state was taken with: a mapping is too long to be kept in it.
        """
        check_state(state, dataset, balance)
        return cls(
            dataset,
            split=state["split"],
            batch=state["batch"],
            seed=state["seed"],
            rows=rows,
            position=state["position"],
            shuffle_window_blocks=state["window_blocks"],
            balance=balance,
            quarantine=state.get("quarantine", ()),
            pin_memory=pin_memory,
        )

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> RawBatch:
        """Return the next batch. Raises what went wrong while reading it, again at every further call."""
        batch = self._head()
        self._ready.popleft()
        self._position += self.batch
        return batch

    def ready(self) -> None:
        """Wait until the next batch is read. Raises what ``next`` would raise, and takes nothing."""
        self._head()

    def quarantine(self, blocks: Iterable[int]) -> None:
        """Read damaged blocks (by their index in the data set) no more, from the next batch on.

        What was read ahead is dropped and read anew. Raises DataError where too little of the split would be left, and
        leaves all as it was.
        """
        quarantine = self._quarantine.having(blocks, self._position)
        for future in self._ahead:
            future.cancel()
        wait(self._ahead)
        self._ahead.clear()
        self._ready.clear()
        self._quarantine = quarantine
        self._begin_at(self._position // self.batch)
        self._read_ahead()

    def close(self) -> None:
        """End the thread, after the batch that it is reading; what was read ahead is dropped."""
        self._closed = True
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()
        self._ready.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _head(self) -> RawBatch:
        if self._closed:
            raise RuntimeError("the stream is closed")
        if not self._ready:
            began = time.perf_counter()
            self._ready.extend(self._ahead[0].result())
            self.waited_sec += time.perf_counter() - began
            self._ahead.popleft()
            self._read_ahead()
        batch = self._ready[0]  # left in place until it is good, so that a failed batch is never skipped
        if isinstance(batch, DataError):
            raise batch
        return batch

    def _begin_at(self, index: int) -> None:
        self._next_read, self._per_read = index, 1  # the first batch is to be there soon

    def _read_ahead(self) -> None:
        while len(self._ahead) < PREFETCHED_READS:
            self._ahead.append(self._reader.submit(self._read, self._next_read, self._per_read))
            self._next_read += self._per_read
            self._per_read = min(2 * self._per_read, self._most_per_read)

    def _read(self, index: int, num: int) -> list[RawBatch | DataError]:
        """Read some global batches; where that fails, one by one: an error stands in the place of its batch."""
        try:
            return list(self._read_together(index, num))
        except DataError as error:
            return [error] if num == 1 else [batch for i in range(num) for batch in self._read(index + i, 1)]

    def _read_together(self, index: int, num: int) -> list[RawBatch]:
        start, rows = index * self.batch, len(self._rows)
        stop = start + num * self.batch
        window = self._order.window_at(stop - 1)
        if window != self._window:
            self._window = window
            self.dataset.prefetch(self._quarantine.replace(self._order.heads_after(*window), start))
        batches = self._order.ids(start, stop).reshape(num, self.batch)[:, self._rows.start : self._rows.stop]
        if self._quarantine.entries:
            replaced = (self._quarantine.replace(ids, start + i * self.batch) for i, ids in enumerate(batches))
            batches = np.stack(list(replaced))
        ids = batches.reshape(-1)
        images = self._fetch(ids).view(num, rows, *self.dataset.shape).unbind()
        found = self.dataset.labels_at(ids)
        labels: Sequence[Tensor | None] = [None] * num
        if found is not None:
            every = torch.from_numpy(found.astype(np.int64)).view(num, rows)
            labels = (every.pin_memory() if self._pin else every).unbind()
        numbers = range(index, index + num)
        return [RawBatch(*piece) for piece in zip(numbers, images, labels, ids.reshape(num, rows), strict=True)]

    def _fetch(self, ids: Ids) -> Tensor:
        if not self._pin:
            return torch.from_numpy(self.dataset.fetch(ids))  # torch's aligned memory leaves holes in a thread's heap
        # Fresh memory each time: torch hands the same out again once no copy to the device reads it any more, which a
        # ring of our own would have to track.
        images = torch.empty((len(ids), *self.dataset.shape), dtype=torch.uint8, pin_memory=True)
        self.dataset.fetch(ids, out=images.numpy())
        return images


def check_state(state: Mapping[str, Any], dataset: DataSet, balance: Balance = "none") -> None:
    """Refuse, by DataError, a state that cannot go on with ``dataset`` under ``balance``: both values are named."""
    expected = {
        "fingerprint": str,
        "order_version": int,
        "split": str,
        "seed": int,
        "batch": int,
        "window_blocks": int,
        "position": int,
    }
    optional = {"balance": str, "quarantine": list}
    wrong = [key for key, kind in expected.items() if type(state.get(key)) is not kind]
    wrong += [key for key, kind in optional.items() if key in state and type(state[key]) is not kind]
    wrong += sorted(set(state) - set(expected) - set(optional))
    if wrong or not all(map(_is_entry, state.get("quarantine", ()))):
        raise DataError(
            f"stream state {dict(state)} must have exactly the keys {', '.join(expected)}, and may have"
            f" {', '.join(optional)}; wrong here: {', '.join(wrong or ['quarantine'])}; use another checkpoint"
        )
    if state["order_version"] != ORDER_VERSION:
        raise DataError(
            f"the checkpoint's data order has version {state['order_version']}, this shoal's has {ORDER_VERSION}; "
            "go on with the version of shoal that wrote the checkpoint, or start a new run"
        )
    if state["fingerprint"] != dataset.fingerprint:
        raise DataError(
            f"the checkpoint was written on the data set with fingerprint {state['fingerprint'][:12]}…, but "
            f"{dataset.location} has {dataset.fingerprint[:12]}…; give the original data with --data, or start a new"
            " run"
        )
    dataset.num_rows(state["split"])
    quotas, kept = quotas_of(dataset, state["split"], balance), state.get("balance", "none")
    given = quotas.name if quotas else "none"
    if kept != given:
        raise DataError(
            f"the checkpoint was written with data.balance '{kept}', but this run's is '{given}'; go on with the same"
            " one, or start a new run"
        )
    Quarantine(dataset, state["split"], state.get("quarantine", ()))


def _is_entry(entry: object) -> bool:
    return isinstance(entry, list) and [type(number) for number in entry] == [int, int] and min(entry) >= 0


def _on_this_device(pin: bool) -> tuple[Any, ...]:
    """Return the thread's initialiser: pinned memory made in a new thread would else wake up device 0."""
    return (torch.cuda.set_device, (torch.cuda.current_device(),)) if pin else ()
