"""A job's log as it grows, over a line that may break."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import aiohttp

from shoal.errors import ClusterError
from shoal_ray.submission.api import JobsApi, UnreachableError
from shoal_ray.submission.outcome import Job, Outcome, parse

PATIENCE_SEC = 300.0
"""How long the cluster may be away: its head may be on its way up again."""

AGAIN_SEC = 1.0
HEARTBEAT_SEC = 15.0


class Lines:
    """Passes on whole lines, except the last one of a job, which is for us."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._begun = ""
        self._seen = 0
        self.outcome: Outcome | None = None

    def add(self, text: str, at: int) -> None:
        """Take a piece of the log that begins at its character ``at``; what was seen before is left out."""
        new = text[max(0, self._seen - at) :]
        self._seen = max(self._seen, at + len(text))
        *whole, self._begun = (self._begun + new).split("\n")
        for line in whole:
            if (told := parse(line)) is not None:
                self.outcome = told
            else:
                self._write(line + "\n")

    def end(self) -> None:
        """Pass on a line that was cut off."""
        if self._begun and parse(self._begun) is None:
            self._write(self._begun + "\n")
        self.outcome = self.outcome or parse(self._begun)


def readable(log: str) -> tuple[str, Outcome | None]:
    """Return a whole log as it is for people, and what it says of the outcome."""
    said: list[str] = []
    lines = Lines(said.append)
    lines.add(log, 0)
    lines.end()
    return "".join(said), lines.outcome


def follow(api: JobsApi, name: str, write: Callable[[str], None], note: Callable[[str], None]) -> Job:
    """Write a job's log from its beginning to its end; return the job, which has ended.

    Args:
        api: the cluster.
        name: the job.
        write: gets whole lines.
        note: told once when the line breaks, and once when it is there again.

    Raises:
        ClusterError: the cluster was away for more than ``PATIENCE_SEC``; the job may go on.
    """
    lines = Lines(write)
    away_since: float | None = None
    while True:
        whole = False
        try:
            asyncio.run(_tail(api, name, lines))
            whole = True
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass  # what it means is asked below
        try:
            job = api.job(name)
        except UnreachableError as error:
            if away_since is None:
                away_since = time.monotonic()
                note(f"the line to the cluster broke ({error.why}); trying again. The job goes on")
            elif time.monotonic() - away_since > PATIENCE_SEC:
                raise ClusterError(f"the cluster was away for {PATIENCE_SEC:g} s; the job may go on: {error}") from None
        else:
            if not job.live:
                # A log that cannot be had any more, since its node is gone, is not waited for.
                if not whole:
                    _rest(api, name, lines)
                lines.end()
                return replace(job, outcome=lines.outcome)
            if away_since is not None:
                away_since = None
                note("the line to the cluster is there again")
        time.sleep(AGAIN_SEC)


async def _tail(api: JobsApi, name: str, lines: Lines) -> None:
    """Pass on a log until the cluster closes the line, which it does at the job's end, and when it goes down itself."""
    at = 0
    connector = aiohttp.UnixConnector(str(api.socket)) if api.socket is not None else None
    async with (
        aiohttp.ClientSession(connector=connector, headers=api.headers, trust_env=api.through_proxy) as session,
        session.ws_connect(
            f"{api.address}/api/jobs/{name}/logs/tail", heartbeat=HEARTBEAT_SEC, max_msg_size=0
        ) as socket,
    ):
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                break
            lines.add(message.data, at)
            at += len(message.data)
        if socket.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE:
            raise ConnectionError


def _rest(api: JobsApi, name: str, lines: Lines) -> None:
    try:
        lines.add(api.log(name), 0)
    except ClusterError:
        return
