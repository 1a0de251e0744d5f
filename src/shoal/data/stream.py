"""The endless stream of training batches of one rank.

Images are uint8 NCHW at rest and on their way to the device; they become float in the preset's range there, just before
the networks.
"""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.data.dataset import DataSet
from shoal.data.order import ORDER_VERSION, Order
from shoal.errors import DataError

PREFETCHED_BATCHES = 3


@dataclass(frozen=True)
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
    stream, or use it as a context manager, to end the thread.
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
        pin_memory: bool | None = None,
    ) -> None:
        """Start reading ahead. ``pin_memory`` None means: where CUDA is available."""
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
        self._order = Order(dataset.fingerprint, seed, dataset.blocks(split), shuffle_window_blocks)
        self._position = position
        self._pin = torch.cuda.is_available() if pin_memory is None else pin_memory
        # One worker: batches are read in order, and the order's caches have one user.
        self._reader = ThreadPoolExecutor(1, "shoal-stream", *_on_this_device(self._pin))
        self._ahead: deque[Future[RawBatch]] = deque()
        self._closed = False
        self._read_ahead()

    @property
    def position(self) -> int:
        """Return the position, in samples of the whole world, of the batch that the consumer gets next."""
        return self._position

    def state(self) -> dict[str, int | str]:
        """Return what ``resume`` needs to go on exactly here; the same on all ranks, and fit for JSON."""
        return {
            "fingerprint": self.dataset.fingerprint,
            "order_version": ORDER_VERSION,
            "split": self.split,
            "seed": self.seed,
            "batch": self.batch,
            "window_blocks": self.window_blocks,
            "position": self._position,
        }

    @classmethod
    def resume(cls, dataset: DataSet, state: Mapping[str, Any], *, rows: slice, pin_memory: bool | None = None) -> Self:
        """Return the stream that goes on where ``state`` was taken; ``rows`` may differ from then."""
        check_state(state, dataset)
        return cls(
            dataset,
            split=state["split"],
            batch=state["batch"],
            seed=state["seed"],
            rows=rows,
            position=state["position"],
            shuffle_window_blocks=state["window_blocks"],
            pin_memory=pin_memory,
        )

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> RawBatch:
        """Return the next batch. Raises what went wrong while reading it, again at every further call."""
        batch = self._head()
        self._ahead.popleft()
        self._position += self.batch
        self._read_ahead()
        return batch

    def ready(self) -> None:
        """Wait until the next batch is read. Raises what ``next`` would raise, and takes nothing."""
        self._head()

    def close(self) -> None:
        """End the thread, after the batch that it is reading; what was read ahead is dropped."""
        self._closed = True
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _head(self) -> RawBatch:
        if self._closed:
            raise RuntimeError("the stream is closed")
        return self._ahead[0].result()  # left in place until it is good, so that a failed batch is never skipped

    def _read_ahead(self) -> None:
        while len(self._ahead) < PREFETCHED_BATCHES:
            self._ahead.append(self._reader.submit(self._read, self._position // self.batch + len(self._ahead)))

    def _read(self, index: int) -> RawBatch:
        start = index * self.batch
        ids = self._order.ids(start + self._rows.start, start + self._rows.stop)
        # A fresh tensor per batch: torch's allocators hand the same memory out again, and the pinned one waits for
        # copies to the device that still read it, which a ring of our own would have to track.
        images = torch.empty((len(ids), *self.dataset.shape), dtype=torch.uint8, pin_memory=self._pin)
        self.dataset.fetch(ids, out=images.numpy())
        found = self.dataset.labels_at(ids)
        labels = None if found is None else torch.from_numpy(found.astype(np.int64))
        return RawBatch(index, images, labels.pin_memory() if labels is not None and self._pin else labels, ids)


def check_state(state: Mapping[str, Any], dataset: DataSet) -> None:
    """Refuse, by DataError, a stream state that cannot go on with ``dataset``: both values are named."""
    expected = {
        "fingerprint": str,
        "order_version": int,
        "split": str,
        "seed": int,
        "batch": int,
        "window_blocks": int,
        "position": int,
    }
    wrong = [key for key, kind in expected.items() if type(state.get(key)) is not kind]
    if wrong or set(state) - set(expected):
        raise DataError(
            f"stream state {dict(state)} must have exactly the keys {', '.join(expected)}; "
            f"wrong here: {', '.join(wrong or sorted(set(state) - set(expected)))}; use another checkpoint"
        )
    if state["order_version"] != ORDER_VERSION:
        raise DataError(
            f"the checkpoint's data order has version {state['order_version']}, this shoal's has {ORDER_VERSION}; "
            "go on with the version of shoal that wrote the checkpoint, or start a new run"
        )
    if state["fingerprint"] != dataset.fingerprint:
        raise DataError(
            f"the checkpoint was written on the data set with fingerprint {state['fingerprint'][:12]}…, but "
            f"{dataset.path} has {dataset.fingerprint[:12]}…; give the original data with --data, or start a new run"
        )
    dataset.num_rows(state["split"])


def _on_this_device(pin: bool) -> tuple[Any, ...]:
    """Return the thread's initialiser: pinned memory made in a new thread would else wake up device 0."""
    return (torch.cuda.set_device, (torch.cuda.current_device(),)) if pin else ()
