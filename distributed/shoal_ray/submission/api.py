"""Ray's jobs over HTTP: https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html.

Not Ray's own client: that one lets ``RAY_ADDRESS`` override the address it is given, waits for ever on a line that went
dead, answers with the server's traceback, and takes two seconds to import.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

import requests

from shoal.errors import ClusterError, did_you_mean
from shoal_ray.submission.address import is_here
from shoal_ray.submission.outcome import Job, parse
from shoal_ray.submission.socket_file import ThroughFile

CONNECT_SEC = 10.0
ANSWER_SEC = 60.0
UPLOAD_SEC = 600.0
"""How long the head may take to store a package; sending it may take as long as it does."""

AT_ONCE = 8
"""Ends of logs that are asked for side by side."""


class UnreachableError(ClusterError):
    """Nobody answers, or not as a cluster does; it may pass.

    Attributes:
        why: what was met, in a few words.
    """

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


class JobsApi:
    """The jobs of one cluster."""

    def __init__(
        self,
        address: str,
        token: str | None,
        where: str | None = None,
        socket: Path | None = None,
        mend: Callable[[], None] = lambda: None,
    ) -> None:
        """Talk to a cluster.

        Args:
            address: the URL of its dashboard.
            token: what lets us in.
            where: what to call it in messages.
            socket: through which it is talked to; without, through the network.
            mend: restores a broken line, before a question is asked again.

        Raises:
            ClusterError: nobody answers there, or it does not let us in.
        """
        self.address = address
        self.socket = socket
        self.where = where or address
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.through_proxy = not is_here(address)  # $HTTP_PROXY knows nothing of this machine's ports
        self._has_token = token is not None
        self._mend = mend
        answer = self._get("/api/version")
        try:
            answer.json()["ray_version"]
        except (ValueError, TypeError, KeyError):
            raise ClusterError(unreachable(self.where, "what answers is no dashboard of Ray")) from None

    def upload(self, name: str, content: bytes, *, anew: bool = False) -> None:
        """Store a package, unless it is there; ``anew``: even if it seems to be."""
        path = f"/api/packages/gcs/{name}"
        if anew or self._get(path, missing=True).status_code == requests.codes.not_found:
            self._ask("PUT", path, data=content, timeout=UPLOAD_SEC)

    def submit(
        self,
        job: str,
        entrypoint: str,
        *,
        runtime_env: Mapping[str, Any],
        metadata: Mapping[str, str],
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Start a job.

        Args:
            job: its name, which no other one has had.
            entrypoint: a line for ``sh``.
            runtime_env: what Ray prepares for its processes.
            metadata: what is listed of it.
            labels: which nodes its driver may run on; without, only the head.

        Raises:
            ClusterError: there is one of that name; or the cluster says no.
        """
        question = {
            "entrypoint": entrypoint,
            "submission_id": job,
            "runtime_env": dict(runtime_env),
            "metadata": dict(metadata),
            **({"entrypoint_label_selector": dict(labels)} if labels else {}),
        }
        try:
            self._ask("POST", "/api/jobs/", json=question)
        except ClusterError as error:
            if "already exists" in str(error):
                raise ClusterError(f"there is a job {job} already; give another --name") from None
            raise

    def all_jobs(self) -> list[Job]:
        """Return everything that was submitted, by whomever, the newest last."""
        listed = [Job.of(details) for details in self._get("/api/jobs/").json() if details.get("submission_id")]
        return sorted(listed, key=lambda job: job.submitted)

    def jobs(self) -> list[Job]:
        """Return what Shoal submitted to train, the newest last."""
        return [job for job in self.all_jobs() if job.command]

    def job(self, name: str) -> Job:
        """Return one job.

        Raises:
            ClusterError: there is none of that name.
        """
        answer = self._get(f"/api/jobs/{name}", missing=True)
        if answer.status_code == requests.codes.not_found:
            known = [job.id for job in self.jobs()]
            raise ClusterError(f"there is no job {name}{did_you_mean(name, known)}; `shoal jobs list` shows them")
        return Job.of(answer.json())

    def stop(self, name: str) -> bool:
        """Ask a job to stop; return whether it ran."""
        return bool(self._ask("POST", f"/api/jobs/{name}/stop").json()["stopped"])

    def delete(self, name: str) -> None:
        """Forget a job that has ended."""
        self._ask("DELETE", f"/api/jobs/{name}", missing=True)

    def log(self, name: str) -> str:
        """Return all that a job has printed."""
        return str(self._get(f"/api/jobs/{name}/logs").json()["logs"])

    def last_line(self, job: Job) -> str:
        """Return the end of a job's log; empty where its node is gone."""
        if job.node is None:
            return ""
        where = {"node_id": job.node, "filename": f"job-driver-{job.id}.log", "lines": "1"}
        try:
            return self._ask("GET", "/api/v0/logs/file", params=where).text.strip()
        except ClusterError:
            return ""

    def told(self, jobs: list[Job]) -> list[Job]:
        """Return the same jobs with what those that have ended said of it."""

        def ask(job: Job) -> Job:
            return job if job.live else replace(job, outcome=parse(self.last_line(job)))

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(ask, jobs))

    def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes that are up: ``node_id``, ``is_head_node``, ``node_ip``, ``resources_total``."""
        answer = self._get("/api/v0/nodes", params={"limit": "10000"}).json()
        return [node for node in answer["data"]["result"]["result"] if node["state"] == "ALIVE"]

    def _get(self, path: str, **how: Any) -> requests.Response:
        try:
            return self._ask("GET", path, **how)
        except UnreachableError:
            self._mend()
        return self._ask("GET", path, **how)

    def _ask(
        self, method: str, path: str, *, missing: bool = False, timeout: float = ANSWER_SEC, **how: Any
    ) -> requests.Response:
        """Send a request and return the answer; ``missing`` allows that there is nothing.

        Raises:
            UnreachableError: no answer.
            ClusterError: the cluster refuses.
        """
        try:
            with requests.Session() as session:  # its own, since a line that is kept may break meanwhile
                session.trust_env = self.through_proxy
                if self.socket is not None:
                    session.mount("http://", ThroughFile(self.socket))
                answer = session.request(
                    method, self.address + path, headers=self.headers, timeout=(CONNECT_SEC, timeout), **how
                )
        except requests.RequestException as error:
            raise UnreachableError(unreachable(self.where, _gist(error)), _gist(error)) from None
        if answer.status_code in (requests.codes.unauthorized, requests.codes.forbidden):
            raise ClusterError(refused(self.where, has_token=self._has_token))
        if answer.ok or (missing and answer.status_code == requests.codes.not_found):
            return answer
        said = (answer.text.strip().splitlines() or [answer.reason])[-1]
        message = f"the cluster at {self.where} answers {answer.status_code} to {method} {path}: {said}"
        if answer.status_code in (502, 503, 504):
            raise UnreachableError(message, answer.reason)
        raise ClusterError(message)


def unreachable(where: str, why: str) -> str:
    """Return what to say where nobody answers."""
    return (
        f"no cluster answers at {where}: {why}. Start one (`ray up cluster.yaml`), give --cluster cluster.yaml, which"
        " opens a tunnel to its head, or --address with the URL of its dashboard"
    )


def refused(where: str, *, has_token: bool) -> str:
    """Return what to say where the token is not right."""
    if has_token:
        return (
            f"the cluster at {where} refuses our token; RAY_AUTH_TOKEN, or ~/.ray/auth_token, has to be the one that"
            " the cluster was started with"
        )
    return (
        f"the cluster at {where} asks for a token, and there is none here; copy the one that it was started with to"
        " ~/.ray/auth_token (chmod 600), or set RAY_AUTH_TOKEN"
    )


def _gist(error: Exception) -> str:
    """Return what went wrong on the line, out of the errors that wrap each other."""
    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    if isinstance(error, requests.ReadTimeout):
        return "it took the question, and gave no answer"
    if isinstance(error, requests.ConnectTimeout):
        return "it does not take calls"
    if isinstance(cause, HTTPException):
        return "what answers does not speak HTTP"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause).strip().partition("\n")[0] or type(cause).__name__
