"""An HTTP proxy that goes away, refuses and cuts off as told, in front of a real S3 endpoint."""

import http.client
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


@dataclass
class Fault:
    """What happens to the next ``times`` requests of a kind, instead of a whole answer.

    Attributes:
        times: how many requests are left.
        method: of the requests that it happens to; all if None.
        status: answered without asking the endpoint, if not None.
        body: of that answer.
        cut: how the true body's first half is sent: ``announced`` under the true length, ``unnoticed`` under its own.
        path: what the path and query of a request must contain.
    """

    times: int
    method: str | None = None
    status: int | None = None
    body: bytes = b""
    cut: str | None = None
    path: str = ""


class FaultyEndpoint:
    """A proxy to ``127.0.0.1:target``; ``requests`` are the method and path of all that came.

    It listens at ``address``, on loopback unless it is told another one.
    """

    def __init__(self, target: int, address: str = "127.0.0.1") -> None:
        self.target = target
        self.address = address
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.before: Callable[[str, str], None] = lambda method, path: None
        self.port = 0
        self._lock = Lock()
        self._connections: set[socket.socket] = set()
        self.back()

    def back(self) -> None:
        """Listen, on the same port as before."""
        endpoint = self

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def process_request(self, request: object, client_address: object) -> None:
                assert isinstance(request, socket.socket)
                endpoint._connections.add(request)
                super().process_request(request, client_address)

            def handle_error(self, request: object, client_address: object) -> None:
                """Say nothing of the connections that `away` broke."""

        self._server = Server((self.address, self.port), _handler(self))
        self.port = self._server.server_address[1]
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def away(self) -> None:
        """Refuse connections and break those that are open."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for connection in self._connections:
            with suppress(OSError):  # ended before
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._connections.clear()

    def fault(self, method: str, path: str) -> Fault | None:
        """Return what shall happen to a request that has just come."""
        with self._lock:
            for fault in self.faults:
                if fault.times and fault.method in (None, method) and fault.path in path:
                    fault.times -= 1
                    return fault
        return None


def _handler(endpoint: FaultyEndpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or every answer with a body waits 40 ms for the receipt of its headers

        def forward(self) -> None:
            body = self.body()
            endpoint.requests.append((self.command, self.path))
            endpoint.before(self.command, self.path)
            fault = endpoint.fault(self.command, self.path)
            if fault and fault.status:
                self.answer(fault.status, [("Content-Type", "application/xml")], fault.body, len(fault.body))
                return
            upstream = http.client.HTTPConnection("127.0.0.1", endpoint.target, timeout=30)
            try:
                headers_there = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
                upstream.request(self.command, self.path, body, headers_there | {"Content-Length": str(len(body))})
                response = upstream.getresponse()
                headers = [(name, value) for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP]
                length = int(response.getheader("Content-Length") or 0)
                content = response.read()
            finally:
                upstream.close()
            if fault and fault.cut:
                content = content[: len(content) // 2]
                length = length if fault.cut == "announced" else len(content)
                self.close_connection = True
            self.answer(response.status, headers, content, length if content or self.command == "HEAD" else 0)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            chunks = []
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass  # trailers of the transfer; S3's own are in the body
            del self.headers["Transfer-Encoding"]
            return b"".join(chunks)

        def answer(self, status: int, headers: list[tuple[str, str]], content: bytes, length: int) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward  # noqa: N815 - names that the base class calls

        def log_message(self, *words: object) -> None:
            """Say nothing."""

    return Handler
