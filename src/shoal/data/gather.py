"""Gather rows that lie anywhere in memory by one fancy index, wherever the maps of their files may be."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_FIRST_ADDRESS = 4096  # NumPy takes 0 for "no memory"; no system maps the first page
_ADDRESSES = 1 << 48
_LONGEST_ITEM = (2**63 - 1) // _ADDRESSES  # NumPy refuses arrays whose items and count multiply to more
_PIECE_BYTES = 1 << 18  # NumPy gathers into a temporary array first: it stays in the cache of a core


class Memory:
    """The memory of this process as an array of rows of ``row_bytes`` bytes, one beginning at each address."""

    def __init__(self, row_bytes: int) -> None:
        self.row_bytes = row_bytes
        self._rows_at = _everything(row_bytes) if row_bytes <= _LONGEST_ITEM else None
        self._rows_per_piece = max(1, _PIECE_BYTES // row_bytes)

    def gather(self, addresses: NDArray[np.int64], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Return the rows at ``addresses``, uint8 [n, row_bytes], in ``out`` where that is given (contiguous).

        The caller answers for the addresses: rows must lie there, and stay there until this returns.
        """
        num = len(addresses)
        if self._rows_at is None:
            return self._copy_one_by_one(addresses, out)
        starts = addresses - _FIRST_ADDRESS
        if out is None:
            return self._rows_at[starts].view(np.uint8).reshape(num, self.row_bytes)
        for first in range(0, num, self._rows_per_piece):
            piece = slice(first, first + self._rows_per_piece)
            out[piece] = self._rows_at[starts[piece]].view(np.uint8).reshape(-1, self.row_bytes)
        return out

    def _copy_one_by_one(self, addresses: NDArray[np.int64], out: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
        memory = _everything(1).view(np.uint8)
        out = np.empty((len(addresses), self.row_bytes), np.uint8) if out is None else out
        for row, start in zip(out, (addresses - _FIRST_ADDRESS).tolist(), strict=True):
            row[:] = memory[start : start + self.row_bytes]
        return out


class _Everything:
    def __init__(self, item_bytes: int) -> None:
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "data": (_FIRST_ADDRESS, True),
            "shape": (_ADDRESSES,),
            "strides": (1,),
            "typestr": f"|V{item_bytes}",
        }


def _everything(item_bytes: int) -> NDArray[np.void]:
    return np.asarray(_Everything(item_bytes))
