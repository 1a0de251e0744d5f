"""A real S3 endpoint on loopback, in a process of its own, behind a proxy that can fail."""

import http.client
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import count

import pytest
from tests.storage.faulty import FaultyEndpoint

from shoal.storage.location import Location

SERVE = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


class S3:
    """An endpoint for one test, with an empty bucket.

    Attributes:
        endpoint: the proxy, whose faults a test chooses.
        bucket: its name.
        root: the bucket as a location, through the proxy.
    """

    def __init__(self, endpoint: FaultyEndpoint, bucket: str) -> None:
        self.endpoint = endpoint
        self.bucket = bucket
        self.root = self.location(f"s3://{bucket}")

    def location(self, uri: str) -> Location:
        """Return a URI's location at this endpoint."""
        return Location.parse(f"{uri}?endpoint_override=127.0.0.1:{self.endpoint.port}&scheme=http&region=us-east-1")

    def ask(self, method: str, path: str, body: bytes = b"") -> int:
        """Return the status of a request past the proxy, without credentials."""
        connection = http.client.HTTPConnection("127.0.0.1", self.endpoint.target, timeout=30)
        try:
            connection.request(method, path, body)
            return connection.getresponse().status
        finally:
            connection.close()


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """The port of a `moto` server, which ends with the tests."""
    environment = os.environ | {"AWS_ACCESS_KEY_ID": "moto", "AWS_SECRET_ACCESS_KEY": "moto"}
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert server.stdout is not None
    with server:
        yield int(server.stdout.readline())
        server.kill()


_numbers = count()


@pytest.fixture
def s3(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """An S3 endpoint with an empty bucket, and credentials for it in the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    endpoint = FaultyEndpoint(s3_port)
    s3 = S3(endpoint, f"bucket-{next(_numbers)}")
    assert s3.ask("PUT", f"/{s3.bucket}") == 200
    yield s3
    endpoint.away()
