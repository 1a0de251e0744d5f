"""Gather rows that lie anywhere in memory by one index, wherever the maps of their files may be."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_FIRST_ADDRESS = 4096  # NumPy takes 0 for "no memory"; no system maps the first page
_ADDRESSES = 1 << 48
_LONGEST_ROW = (2**63 - 1) // _ADDRESSES  # torch refuses tensors of more elements


class Memory:
    """The memory of this process as a matrix of rows of ``row_bytes`` bytes, one beginning at each address."""

    def __init__(self, row_bytes: int) -> None:
        self.row_bytes = row_bytes
        self._rows_at: torch.Tensor | None = None
        if row_bytes <= _LONGEST_ROW:
            everything = torch.from_numpy(_everything())
            self._rows_at = everything.as_strided((len(everything) - row_bytes, row_bytes), (1, 1))

    def gather(self, addresses: NDArray[np.int64], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Return the rows at ``addresses``, uint8 [n, row_bytes], in ``out`` where that is given (contiguous).

        The caller answers for the addresses: rows must lie there, and stay there until this returns.
        """
        out = np.empty((len(addresses), self.row_bytes), np.uint8) if out is None else out
        if self._rows_at is None:
            return self._copy_one_by_one(addresses, out)
        # torch's index writes straight into the output; NumPy's makes an array of its own first.
        starts = torch.from_numpy(addresses - _FIRST_ADDRESS)
        torch.index_select(self._rows_at, 0, starts, out=torch.from_numpy(out))
        return out

    def _copy_one_by_one(self, addresses: NDArray[np.int64], out: NDArray[np.uint8]) -> NDArray[np.uint8]:
        memory = _everything()
        for row, start in zip(out, (addresses - _FIRST_ADDRESS).tolist(), strict=True):
            row[:] = memory[start : start + self.row_bytes]
        return out


class _Everything:
    """Read only, by agreement: torch warns of arrays that say so."""

    __array_interface__: dict[str, Any] = {  # noqa: RUF012  # NumPy's protocol
        "version": 3,
        "data": (_FIRST_ADDRESS, False),
        "shape": (_ADDRESSES,),
        "strides": (1,),
        "typestr": "|u1",
    }


def _everything() -> NDArray[np.uint8]:
    return np.asarray(_Everything())
