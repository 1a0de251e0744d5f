"""A server that answers as the dashboard of a cluster does, where what is tested is who asks, and not a cluster."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NODE = {"node_id": "n", "is_head_node": True, "node_ip": "127.0.0.1", "resources_total": {}, "state": "ALIVE"}


class Dashboard:
    """Jobs that are what the test says.

    Attributes:
        jobs: what is answered of each, by its name.
        logs: what each has said.
        asked: the path of every question.
        tokens: what was sent with each to get in.
        submitted: called with the details of a job that is sent.
        port: where it answers, on all of this machine's addresses.
    """

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.asked: list[str] = []
        self.tokens: list[str | None] = []
        self.submitted: Callable[[dict[str, Any]], None] = lambda job: None
        self.port: int = server.server_address[1]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, name: str, status: str = "RUNNING", log: str = "", **details: Any) -> dict[str, Any]:
        """Add a job, and return what is answered of it."""
        self.logs[name] = log
        self.jobs[name] = {"submission_id": name, "status": status, "driver_node_id": "n", "start_time": 1, **details}
        return self.jobs[name]

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Return a status and what is said with it."""
        path, _, query = path.partition("?")
        if path == "/api/version":
            return 200, {"ray_version": "2"}
        if path == "/api/v0/nodes":
            return 200, {"data": {"result": {"result": [NODE]}}}
        if path == "/api/v0/logs/file":
            name = query.partition("job-driver-")[2].partition(".log")[0]
            return 200, self.logs[name].rstrip().rpartition("\n")[2]
        if path.startswith("/api/packages/"):
            return (404 if method == "GET" else 200), {}
        name, _, what = path.removeprefix("/api/jobs/").partition("/")
        if not name and method == "POST":
            job = json.loads(body)
            self.add(job["submission_id"], **job)
            self.submitted(job)
            return 200, {}
        if not name:
            return 200, list(self.jobs.values())
        if name not in self.jobs:
            return 404, {}
        if method == "DELETE":
            del self.jobs[name]
        elif what == "stop":
            self.jobs[name]["status"] = "STOPPED"
            return 200, {"stopped": True}
        elif what:
            return (200, {"logs": self.logs[name]}) if what == "logs" else (404, {})
        return 200, self.jobs.get(name, {})


@contextmanager
def dashboard() -> Iterator[Dashboard]:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            found.asked.append(self.path)
            found.tokens.append(self.headers["Authorization"])
            status, said = found.answer(self.command, self.path, body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write((said if isinstance(said, str) else json.dumps(said)).encode())

        def __getattr__(self, name: str) -> Any:
            if name.startswith("do_"):
                return self.do_GET
            raise AttributeError(name)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("0.0.0.0", 0), Answers) as server:
        found = Dashboard(server)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()
