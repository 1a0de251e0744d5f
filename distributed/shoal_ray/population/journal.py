"""What happened in a search, a JSON object a line: on disk before anyone acts on it."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.errors import RunError
from shoal.files import sync_directory
from shoal.run import read_rows
from shoal.run_files import lock

Row = Mapping[str, Any]

PREDECESSOR_SEC = 60.0
"""How long the writer of a search that goes on waits for that of a driver that was killed: Ray ends it, a moment later.
"""


class Journal:
    """A file that grows by whole rows; one process writes it, and holds it by a lock until it closes it or ends.

    What a kill left half-written at its end is cut off when the file is opened again: nobody was told of it.

    Args:
        path: of the file, which need not exist yet.

    Raises:
        RunError: it is damaged, or another process does not let go of it.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        if not lock(self._file, PREDECESSOR_SEC):
            self._file.close()
            raise RunError(f"{path} is being written by another process; wait for it, or stop it")
        try:
            self._read(path)
        except BaseException:
            self._file.close()
            raise

    def _read(self, path: Path) -> None:
        self.rows: list[Row] = list(read_rows(path))
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        if len(lines) > len(self.rows) + 1:
            raise RunError(
                f"{path} is damaged at line {len(self.rows) + 1} of {len(lines)}: what follows would be lost; mend or"
                " remove that line"
            )
        whole = sum(map(len, lines[: len(self.rows)]))
        self._file.truncate(whole)
        sync_directory(path.parent)

    def append(self, *rows: Row) -> None:
        """Write rows at once; when this returns, they survive whatever comes."""
        self._file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows.extend(rows)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def events(rows: Sequence[Row], name: str) -> list[Row]:
    """Return the rows of one kind of event."""
    return [row for row in rows if row.get("event") == name]
