"""In which order a split is read: arithmetic on integers, with no file, clock or generator behind it.

An epoch permutes the blocks of the split, then the rows inside each window of ``window_blocks`` permuted blocks: rows
far apart meet in a batch, while only a window's worth of blocks is touched at a time. Under a class balance a row is
drawn never, once or more often, all in the window of its block.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from shoal.data.balance import EpochDraws, Quotas

ORDER_VERSION = 1

Ids = NDArray[np.int64]


class Order:
    """The endless sequence of global ids that (fingerprint, seed) draws from the blocks of one split.

    ``blocks`` is int64 [num_blocks, 2]: first id and rows of each block. Each epoch holds every row exactly once, or
    with ``quotas`` as often as they say: ``num_rows`` draws either way. Position p belongs to epoch ``p // num_rows``.
    The sequence is pinned by ``ORDER_VERSION``.
    """

    def __init__(
        self, fingerprint: str, seed: int, blocks: Ids, window_blocks: int = 16, quotas: Quotas | None = None
    ) -> None:
        assert blocks.shape == (len(blocks), 2)
        assert len(blocks) > 0 < window_blocks
        self.fingerprint = fingerprint
        self.seed = seed
        self.window_blocks = window_blocks
        self._first = blocks[:, 0].astype(np.int64)
        self._rows = blocks[:, 1].astype(np.int64)
        self.num_rows = int(self._rows.sum())
        self._quotas = quotas
        self._draws: EpochDraws | None = None  # of the epoch at hand
        # One entry each: a reader moves forwards, so the epoch and window at hand are all that is asked for again.
        self._epoch: tuple[int, Ids, Ids] = (-1, self._first, self._first)
        self._window: tuple[tuple[int, int], Ids] = ((-1, -1), self._first)

    def ids(self, start_position: int, stop_position: int) -> Ids:
        """Return the global ids at positions ``start_position .. stop_position - 1``, across any windows and epochs.

        int64 [stop - start]. Costs one sort of the blocks per epoch and one of the rows per window that is touched;
        with quotas also int64 [num_windows, num_classes] per epoch.
        """
        assert 0 <= start_position <= stop_position, (start_position, stop_position)
        pieces = []
        position = start_position
        while position < stop_position:
            epoch, offset = divmod(position, self.num_rows)
            ids, window_start = self._window_at(epoch, offset)
            piece = ids[offset - window_start : offset - window_start + stop_position - position]
            pieces.append(piece)
            position += len(piece)
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def window_at(self, position: int) -> tuple[int, int]:
        """Return the epoch that holds a position, and which window of it does."""
        epoch, offset = divmod(position, self.num_rows)
        return epoch, self._window_of(epoch, offset)

    def heads_after(self, epoch: int, window: int) -> Ids:
        """Return the first id of each block of the window after that one, int64 [num_blocks]."""
        if (window + 1) * self.window_blocks >= len(self._rows):
            epoch, window = epoch + 1, -1
        blocks, _ = self._blocks_of(epoch)
        return self._first[blocks[(window + 1) * self.window_blocks : (window + 2) * self.window_blocks]]

    def _window_of(self, epoch: int, offset: int) -> int:
        return int(np.searchsorted(self._blocks_of(epoch)[1], offset, side="right")) - 1

    def _window_at(self, epoch: int, offset: int) -> tuple[Ids, int]:
        """Return the ids of the window that holds ``offset`` of ``epoch``, and the offset that it starts at."""
        blocks, starts = self._blocks_of(epoch)
        window = self._window_of(epoch, offset)
        if self._window[0] != (epoch, window):
            inside = blocks[window * self.window_blocks : (window + 1) * self.window_blocks]
            rows = np.concatenate([np.arange(self._first[b], self._first[b] + self._rows[b]) for b in inside])
            if self._draws is not None:
                rows = self._draws.window(window, rows)
            self._window = ((epoch, window), rows[self._permutation(f"rows/{window}", epoch, len(rows))])
        return self._window[1], int(starts[window])

    def _blocks_of(self, epoch: int) -> tuple[Ids, Ids]:
        """Return the block order of ``epoch``, and the offset at which each of its windows starts."""
        if self._epoch[0] != epoch:
            blocks = self._permutation("blocks", epoch, len(self._rows))
            if self._quotas is None:
                ends = np.cumsum(self._rows[blocks])
                starts = np.concatenate([[0], ends[self.window_blocks - 1 : -1 : self.window_blocks]])
            else:
                window_of_block = np.empty(len(blocks), np.int64)
                window_of_block[blocks] = np.arange(len(blocks)) // self.window_blocks
                words = self._words("quotas", epoch, len(self._quotas.shares))
                self._draws = self._quotas.epoch(window_of_block, words)
                starts = self._draws.starts
            self._epoch = (epoch, blocks, starts)
        return self._epoch[1], self._epoch[2]

    def _permutation(self, purpose: str, epoch: int, num: int) -> Ids:
        return stable_argsort(self._words(purpose, epoch, num))

    def _words(self, purpose: str, epoch: int, num: int) -> NDArray[np.uint64]:
        # Raw Philox words and their order are fixed by their definitions; Generator.permutation's stream is not.
        name = f"shoal.order/{ORDER_VERSION}/{self.fingerprint}/{self.seed}/{epoch}/{purpose}"
        key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")
        return np.random.Philox(key=key).random_raw(num)


def stable_argsort(words: NDArray[np.uint64]) -> Ids:
    """Return ``np.argsort(words, kind="stable")``, int64 [n], in a tenth of the time where the words are random."""
    # Places take the room of the low bits, and one sort of plain integers carries them along. Words that are alike in
    # all other bits would come in the order of their places: rare, and then it is done the slow way.
    bits = np.uint64(max(1, (len(words) - 1).bit_length()))
    places = (np.uint64(1) << bits) - np.uint64(1)
    packed = (words & ~places) | np.arange(len(words), dtype=np.uint64)
    packed.sort()
    high = packed >> bits
    if (high[1:] == high[:-1]).any():
        return np.argsort(words, kind="stable")
    packed &= places
    return packed.view(np.int64)
