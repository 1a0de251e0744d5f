"""A process that reads units of a source and sends their rows; see ``reading`` for the other side.

Imports no torch: its memory would count once for every process.
"""

import contextlib
import os
import pickle
import threading
import traceback
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from shoal.data.importers import wire
from shoal.data.importers.source import Rows, Source
from shoal.errors import DataError


class Failure(NamedTuple):
    """What went wrong with a unit, and where."""

    error: BaseException
    trace: str


def main() -> None:
    """Receive a source and then units on standard input; send each one's rows, then None, on standard output."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a source prints must not get between the rows
    asked: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(os.fdopen(os.dup(0), "rb"), asked), daemon=True).start()
    with contextlib.suppress(BrokenPipeError):
        try:
            source, limit = _unpickle(asked.get())
            while True:
                for rows in read_unit(source, _unpickle(asked.get()), limit):
                    wire.send(answers, rows)
                wire.send(answers, None)
        except BrokenPipeError:
            raise
        except Exception as error:  # whatever a source raises
            wire.send(answers, _failure(error))
    os._exit(0)  # at once: the thread waits in a read


def _unpickle(data: bytes) -> Any:
    try:
        return pickle.loads(data)
    except (AttributeError, ImportError) as error:
        raise DataError(
            f"another process cannot read this source: {error}; define its classes in a module that can be imported, "
            "or read it in one process: jobs=1"
        ) from None


def _listen(file: Any, asked: "SimpleQueue[bytes]") -> None:
    """Take over units, however busy this process is; end it when the other one has gone."""
    try:
        while True:
            asked.put(wire.receive(file)[0])
    except wire.ClosedError:
        os._exit(0)


def read_unit(source: Source, unit: Any, limit: int | None) -> Iterator[Rows]:
    """Yield the rows of a unit, as contiguous arrays; not many more than ``limit`` of one whose split is known."""
    num = 0
    for rows in source.read(unit):
        if isinstance(rows.images, np.ndarray):
            rows = Rows(rows.split, np.ascontiguousarray(rows.images), rows.labels, rows.num_skipped)
        yield rows
        num += len(rows)
        if limit is not None and num >= limit and split_of(unit) is not None:
            return


def split_of(unit: Any) -> str | None:
    """Return the split of all rows of a unit, where the unit says so."""
    split = getattr(unit, "split", None)
    return split if isinstance(split, str) else None


def _failure(error: BaseException) -> Failure:
    trace = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError("".join(traceback.format_exception_only(error)).strip())
    return Failure(error, trace)
