"""An S3 endpoint that hosts reach: a real server on one of them, behind a proxy there that can fail."""

import http.client
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.hosts.hosts import Hosts
from tests.storage.faulty import FaultyEndpoint
from tests.storage.s3 import SERVE

from shoal.storage.location import Location
from shoal.storage.mirror import Mirror
from shoal.storage.node import node_folder

BUCKET = "bucket"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_EC2_METADATA_DISABLED": "true"}
"""What every process of the hosts finds in its environment, as on machines that were given a role."""

COPY = """
import sys
from pathlib import Path
from shoal.storage.location import Location
home, target = Location.parse(sys.argv[1]), Path(sys.argv[2])
for name in home.files():
    (home / name).download(target / name)
"""


LIST = """
import sys
from shoal.storage.location import Location
print(*Location.parse(sys.argv[1]).files())
"""


class Store:
    """An endpoint with an empty bucket, inside the context.

    Attributes:
        endpoint: the proxy, whose faults a test chooses.
    """

    def __init__(self, hosts: Hosts, host: str) -> None:
        self._hosts = hosts
        self._host = host

    def __enter__(self) -> Self:
        """Start it."""
        self._server = self._hosts.popen(self._host, ["python", "-c", SERVE], stdin=subprocess.PIPE)
        assert self._server.stdout is not None
        port = int(self._server.stdout.readline())
        address = self._hosts.address(self._host)
        self.endpoint = self._hosts.on_network(self._host, lambda: FaultyEndpoint(port, address))

        def make_bucket() -> int:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("PUT", f"/{BUCKET}")
            return connection.getresponse().status

        assert self._hosts.on_network(self._host, make_bucket) == 200
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, and all that it holds."""
        self.endpoint.away()
        self._server.communicate("")

    def uri(self, name: str) -> str:
        """Return the URI of something in the bucket, as any host may use it."""
        endpoint = f"{self._hosts.address(self._host)}:{self.endpoint.port}"
        return f"s3://{BUCKET}/{name}?endpoint_override={endpoint}&scheme=http&region=us-east-1"

    def seen_from(self, host: str, name: str) -> Path:
        """Return where a process on a host that only looks at a run keeps its copy."""
        copy = Mirror.of(Location.parse(self.uri(name)), writes=False).path
        return self._hosts.home(host) / ".cache" / "shoal" / copy.relative_to(node_folder())

    def names(self, name: str) -> list[str]:
        """Return what is below something in the bucket."""
        return self._hosts.run(self._host, ["python", "-c", LIST, self.uri(name)]).stdout.split()

    def copy(self, name: str, target: Path) -> None:
        """Copy a run as any tool would: all that is below its URI."""
        self._hosts.run(self._host, ["python", "-c", COPY, self.uri(name), target])
