"""Faults of a store that may pass: which they are, and how long to wait for their end."""

import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")
_log = logging.getLogger("shoal.storage")


class TransientError(Exception):
    """A fault that our own code found and that may pass, such as a body that ends too early."""


@dataclass(frozen=True)
class Patience:
    """How to wait for a store.

    Attributes:
        total_sec: from the first attempt to the last.
        first_sec: the mean wait after the first fault; it doubles with every further one.
        most_sec: the longest wait.
        on_wait: told before every wait, in a sentence, what did not answer and for how long it will be asked.
    """

    total_sec: float = 60.0
    first_sec: float = 0.25
    most_sec: float = 8.0
    on_wait: Callable[[str], None] = _log.warning


_current = Patience()


def current() -> Patience:
    """Return the patience of this process."""
    return _current


@contextmanager
def patience(chosen: Patience) -> Iterator[None]:
    """Use another patience inside the block, in all threads of this process."""
    global _current
    before, _current = _current, chosen
    try:
        yield
    finally:
        _current = before


def until_it_answers(action: Callable[[], Result], what: str) -> Result:
    """Return ``action()``, tried again with exponential backoff and jitter while its errors may pass.

    Args:
        action: safe to carry out twice.
        what: what it works on, for the sentence that ``on_wait`` hears.

    Raises:
        Exception: one that does not pass, at once; one that may, when patience is at its end.
    """
    chosen = current()
    deadline = time.monotonic() + chosen.total_sec
    wait = chosen.first_sec
    while True:
        try:
            return action()
        except Exception as error:
            left = deadline - time.monotonic()
            if not may_pass(error) or left <= 0:
                raise
            chosen.on_wait(f"{what}: storage does not answer ({in_short(error)}); trying for another {left:.0f} s")
            # Jitter, or all workers would come back in the same instant to a store that has too much to do.
            time.sleep(min(left, wait * random.uniform(0.5, 1.5)))
            wait = min(2 * wait, chosen.most_sec)


PASSES = re.compile(
    r"NETWORK_CONNECTION|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|SLOW_DOWN|THROTTLING|REQUEST_TIMEOUT"
    r"|HTTP status (5\d\d|408|429)|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED"
    r"|timed? ?out|[Cc]onnection (reset|refused)",
)
"""What stores and their client libraries call a fault that may pass; `pyarrow.fs` hands on only their text."""


def may_pass(error: Exception) -> bool:
    """Return whether the same request may be answered later."""
    if isinstance(error, TransientError | ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and error.errno is None and PASSES.search(str(error)) is not None


def in_short(error: Exception) -> str:
    """Return what a store said in at most one line, without the request that it answered."""
    said = " ".join(str(error).split())
    said = re.sub(r" \(Request ID: [^)]*\)", "", said)
    return re.sub(r"^When .*?: (?=AWS Error)|; Details: .*", "", said)
