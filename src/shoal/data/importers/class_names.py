"""Names for classes that the source only numbers."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from shoal.errors import DataError

MAX_CLASSES = 1 << 16


def names_for(labels: Iterable[NDArray[np.integer]], given: list[str] | None) -> list[str]:
    """Return ``given``, or "0", "1", … up to the largest label. Raises DataError for one too large to be a class."""
    if given is not None:
        return given
    top = max((int(part.max()) for part in labels if len(part)), default=0)
    if top >= MAX_CLASSES:
        raise DataError(f"label {top:,} is too large for a class number; number the classes 0 to {MAX_CLASSES - 1:,}")
    return [str(number) for number in range(max(top, 0) + 1)]
