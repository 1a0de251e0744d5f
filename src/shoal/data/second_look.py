"""Read again what did not come as it was written, before it is called damaged."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from shoal.errors import DataError
from shoal.storage.retry import current

Result = TypeVar("Result")

LOCAL_TRIES = 2
REMOTE_TRIES = 4
"""pyarrow hands on a body that was cut short under a shorter length as if it were whole: with anything at its end."""


def until_right(read: Callable[[bool], Result], *, remote: bool) -> Result:
    """Return ``read(False)`` or, where that raises DataError, ``read(True)``: once more, or several times from afar.

    Raises:
        DataError: the last one.
    """
    tries = REMOTE_TRIES if remote else LOCAL_TRIES
    wait = current().first_sec
    for number in range(1, tries):
        try:
            return read(number > 1)
        except DataError:
            if remote:
                time.sleep(wait * random.uniform(0.5, 1.5))
                wait *= 2
    return read(True)
