"""HTTP through a socket that is a file: a folder keeps others from listening there, and nothing does from a port."""

import socket
from pathlib import Path
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool


def connect(path: Path, timeout: float | None) -> socket.socket:
    """Return a connection to whoever listens at ``path``.

    Raises:
        OSError: nobody does.
    """
    line = socket.socket(socket.AF_UNIX)
    try:
        line.settimeout(timeout)
        line.connect(str(path))
    except OSError:
        line.close()
        raise
    return line


class ThroughFile(HTTPAdapter):
    """Sends what is meant for any host through one socket."""

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__()

    def init_poolmanager(self, *given: Any, **named: Any) -> None:
        """Make the pools from which ``requests`` takes its connections."""
        path = self._path

        class Connection(HTTPConnection):
            def connect(self) -> None:
                self.sock = connect(path, self.timeout)

        class Pool(HTTPConnectionPool):
            ConnectionCls = Connection

        super().init_poolmanager(*given, **named)
        self.poolmanager.pool_classes_by_scheme = {"http": Pool}
