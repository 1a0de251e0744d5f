"""What happened in a search, a JSON object a line: on disk before anyone acts on it."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.errors import RunError
from shoal.files import sync_directory
from shoal.run import read_rows

Row = Mapping[str, Any]


class Journal:
    """A file that grows by whole rows; one process writes it.

    What a kill left half-written at its end is cut off when the file is opened again: nobody was told of it.

    Args:
        path: of the file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.rows: list[Row] = list(read_rows(path))
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        if len(lines) > len(self.rows) + 1:
            raise RunError(
                f"{path} is damaged at line {len(self.rows) + 1} of {len(lines)}: what follows would be lost; mend or"
                " remove that line"
            )
        whole = sum(map(len, lines[: len(self.rows)]))
        self._file = path.open("ab")
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
