"""How many bytes a cache folder holds, and what goes when it would be too many."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import NamedTuple

from shoal.storage.locks import held

FILLED_AFTER_EVICTION = 0.9
"""Of the cap: so all files are looked at once per tenth of the cap, not once per block."""
FILLING = ".filling"
"""How the name of a file ends that is not whole yet."""
TOTAL, LOCKS = ".bytes", ".locks"


class CachedFile(NamedTuple):
    """A file of the cache, and when it was last used."""

    used_ns: int
    path: Path
    num_bytes: int


class Space:
    """The bytes of a cache folder, shared by the processes of a node.

    ``.bytes`` in the folder holds an upper bound of their sum: a file is counted before it is written, so whoever dies
    leaves a number too large, which the next look at the files puts right.

    Args:
        folder: the cache.
        cap_bytes: what its files may hold together, those that are being written included.
        abandoned: tries to lock an unfinished file against its writer; true if there is none.
    """

    def __init__(self, folder: Path, cap_bytes: int, abandoned: Callable[[Path], AbstractContextManager[bool]]) -> None:
        self.folder = folder
        self.cap_bytes = cap_bytes
        self._abandoned = abandoned

    def reserve(self, filling: Path, num_bytes: int) -> bool:
        """Create a file of this size, full of nothing, after the least recently used have made room for it.

        A file that someone has mapped stays readable for them: its name goes, its pages do not.

        Returns:
            Whether there is room. If not, nothing is created.
        """
        if num_bytes > self.cap_bytes:
            return False
        with held(self.folder / LOCKS / "space"):
            total = self._recorded()
            if total is None or total + num_bytes > self.cap_bytes:
                total = self._evict(num_bytes)
            if total + num_bytes > self.cap_bytes:  # by what others are writing at this moment
                return False
            (self.folder / TOTAL).write_text(str(total + num_bytes))
            filling.parent.mkdir(parents=True, exist_ok=True)
            with filling.open("wb") as file:
                file.truncate(num_bytes)  # the next look at the files counts it whole
        return True

    def used_bytes(self) -> int:
        """Return the upper bound as recorded; 0 before the first file."""
        return self._recorded() or 0

    def _recorded(self) -> int | None:
        try:
            return int((self.folder / TOTAL).read_text())
        except (OSError, ValueError):  # none yet, or its writer was killed
            return None

    def _evict(self, num_bytes: int) -> int:
        """Remove abandoned files, then the least recently used, until there is room; return the bytes that stay."""
        whole, total = [], 0
        for file in self._files():
            if file.path.name.endswith(FILLING):
                with self._abandoned(file.path) as nobody:
                    if nobody:
                        file.path.unlink(missing_ok=True)
                        continue
            else:
                whole.append(file)
            total += file.num_bytes
        if total + num_bytes > self.cap_bytes:
            goal = min(self.cap_bytes - num_bytes, int(self.cap_bytes * FILLED_AFTER_EVICTION))
            for file in sorted(whole):
                if total <= goal:
                    break
                file.path.unlink(missing_ok=True)
                total -= file.num_bytes
        return total

    def _files(self) -> Iterator[CachedFile]:
        for folder, subfolders, names in os.walk(self.folder):
            if Path(folder) == self.folder:
                subfolders[:] = [name for name in subfolders if name != LOCKS]
                names = [name for name in names if name != TOTAL]
            for name in names:
                path = Path(folder, name)
                with suppress(FileNotFoundError):  # renamed or dropped meanwhile
                    status = path.stat()
                    yield CachedFile(status.st_atime_ns, path, status.st_size)
