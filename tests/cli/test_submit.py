"""What `shoal submit` and `shoal jobs` say where there is no cluster, or not for us: one line, exit code 2."""

import http.server
import json
import shlex
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Said, Shoal
from tests.submission.dashboard import dashboard

from shoal_ray.submission.connect import connected
from shoal_ray.submission.outcome import Outcome

ADDRESSED = [
    ("jobs", "list"),
    ("jobs", "logs", "x"),
    ("jobs", "stop", "x"),
    ("submit", "--", "train", "vae", "--out", "/x"),
]


@pytest.fixture(autouse=True)
def nobody_in_particular(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


class Answers(http.server.BaseHTTPRequestHandler):
    """As a cluster answers that asks for the token ``right``, and is otherwise no cluster."""

    def do_GET(self) -> None:
        said = self.headers["Authorization"]
        self.send_response(401 if said is None else 200 if said == "Bearer right" else 403)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def refused(said: Said, *texts: str) -> None:
    assert (said.code, said.out) == (2, "")
    assert said.error.startswith("error: ")
    assert all(text in said.error for text in texts), said.error


@pytest.mark.parametrize("words", ADDRESSED, ids=lambda words: " ".join(words[:2]))
def test_nobody_answers(shoal: Shoal, words: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    command = 1 if words[0] == "submit" else 2
    said = shoal(*words[:command], "--address", address, *words[command:])
    refused(said, f"no cluster answers at {address}: Connection refused", "ray up cluster.yaml", "--cluster")


def test_a_token_is_asked_for(shoal: Shoal, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(shoal("jobs", "list", "--address", server), "asks for a token, and there is none here")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    refused(shoal("jobs", "list", "--address", server), "refuses our token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    refused(shoal("jobs", "list", "--address", server), "what answers is no dashboard of Ray")


def test_a_proxy_is_not_asked_for_this_machine(shoal: Shoal, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    refused(shoal("jobs", "list", "--address", server), "asks for a token")


def test_a_cluster_file_may_lie_at_home(shoal: Shoal, tmp_path: Path) -> None:
    refused(shoal("jobs", "list", "--cluster=~/x.yaml"), f"--cluster {tmp_path / 'x.yaml'}: No such file")
    (tmp_path / "x.yaml").write_text("provider: {type: aws}")
    refused(shoal("jobs", "list", "--cluster=~/x.yaml"), f"ray dashboard {tmp_path / 'x.yaml'}")


def test_too_large_a_tree_is_refused_before_anyone_is_asked(shoal: Shoal, tmp_path: Path) -> None:
    with (tmp_path / "huge.bin").open("wb") as file:
        file.truncate(101 * 2**20)
    said = shoal("submit", "--address", "http://127.0.0.1:9", "--", "train", "vae", "--out", "/x")
    refused(said, "1 file(s), 101.0 MiB", "more than the 100 MiB", "huge.bin", ".rayignore")
    (tmp_path / ".rayignore").write_text("*.bin")
    refused(
        shoal("submit", "--address", "http://127.0.0.1:9", "--", "train", "vae", "--out", "/x"), "no cluster answers"
    )


def test_options_after_the_command_are_its_own(shoal: Shoal) -> None:
    said = shoal("submit", "train", "vae", "--out", "runs/x", "--address", "http://127.0.0.1:9")
    refused(said, "--address http://127.0.0.1:9 after --")
    assert "No such option: --nonsense" in shoal("submit", "--", "train", "vae", "--nonsense").error


@pytest.mark.parametrize("words", ADDRESSED, ids=lambda words: " ".join(words[:2]))
def test_a_token_in_the_clear_is_warned_of(
    shoal: Shoal, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.2")
    caution = "caution: the token travels to http://127.0.0.2:{} unencrypted; --cluster cluster.yaml goes through ssh\n"
    command = 1 if words[0] == "submit" else 2
    with dashboard() as cluster:
        cluster.add("x", "SUCCEEDED")
        address = f"http://127.0.0.2:{cluster.port}"  # as another machine is, not what is called this one
        cluster.submitted = lambda job: cluster.jobs[job["submission_id"]].update(status="FAILED")
        assert "caution" not in shoal(*words[:command], "--address", address, *words[command:]).error
        monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
        assert caution.format(cluster.port) in shoal(*words[:command], "--address", address, *words[command:]).error
        assert "caution" not in shoal(*words[:command], "--address", cluster.address, *words[command:]).error
        if words == ("jobs", "list"):
            said = shoal("jobs", "list", "--json", "--address", address)
            assert json.loads(said.out) == []
            assert said.error == caution.format(cluster.port)


def test_a_token_is_warned_of_before_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.2")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    asked_before: list[int] = []
    with dashboard() as cluster:
        address = f"http://127.0.0.2:{cluster.port}"
        with connected(address, None, lambda text: asked_before.append(len(cluster.asked))):
            assert asked_before == [0]
        assert cluster.tokens == ["Bearer right"]


@pytest.mark.parametrize(("lost", "code", "asked"), [(1, 0, 3), (2, 2, 3)])
def test_a_package_that_went_with_other_jobs_is_uploaded_again_once(
    shoal: Shoal, tmp_path: Path, lost: int, code: int, asked: int
) -> None:
    (tmp_path / "tree").mkdir()
    why = "h1: no answer: OSError: Failed to download runtime_env file package gcs://x.zip from the GCS"
    with dashboard() as cluster:

        def answer(job: dict[str, Any]) -> None:
            name, fails = job["submission_id"], not job["metadata"] and len(cluster.jobs) <= lost
            cluster.jobs[name]["status"] = "FAILED" if fails else "SUCCEEDED"
            cluster.logs[name] = (Outcome("failed", 2, None, why) if fails else Outcome("finished", 0)).line()

        cluster.submitted = answer
        submit = ["submit", "--address", cluster.address, "--working-dir", "tree", "--name", "x"]
        said = shoal(*submit, "--", "train", "vae", "--out", "/x")
    assert said.code == code, said.error
    assert sum(path.startswith("/api/packages/") for path in cluster.asked) == asked  # is it there, two uploads
    assert ("x" in cluster.jobs) == (code == 0)
    assert (why in said.error) == (code == 2)


def test_a_job_is_gone_on_with_as_it_was_submitted(
    shoal: Shoal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET", "hush")
    (tmp_path / "my tree").mkdir()
    environment = ["--env", "MY_SECRET", "--env", "A=1 2", "--on-head"]
    with dashboard() as cluster:

        def answer(job: dict[str, Any]) -> None:
            name = job["submission_id"]
            checks = not job["metadata"]
            cluster.jobs[name]["status"] = "SUCCEEDED" if checks else "RUNNING"
            cluster.logs[name] = (Outcome("finished", 0) if checks else Outcome("stopped", 143, 7)).line()
            sent.append(json.dumps(job))

        sent: list[str] = []
        cluster.submitted = answer
        submit = ["submit", "--address", cluster.address, "--working-dir", "my tree", *environment, "--name", "x"]
        said = shoal(*submit, "--", "train", "vae", "--out", "/x")
        assert said.code == 0, said.error
        options = shlex.join([*environment, "--", "train", "--resume", "--out", "/x"])
        assert f"resume  shoal submit --address {cluster.address} --working-dir 'my tree' {options}\n" in said.error
        assert "hush" not in "".join(sent)
        monkeypatch.chdir("/")
        said = shoal("jobs", "stop", "--wait", "x", "--address", cluster.address)
    assert said.code == 0, said.error
    place = f"--address {cluster.address} --working-dir '{tmp_path}/my tree'"
    assert said.out == f"x: stopped at sample 7\nresume: shoal submit {place} {options}\n"
