"""What came of a job: told by the job itself, in the last line that it prints.

Ray knows how a process ended, not how a run did: of a job that was stopped it says STOPPED, whether a checkpoint was
written or the process was killed in the middle. Metadata cannot be added to a job that runs, and the run's own
``ended.json`` may lie where whoever asks cannot look. The last line of a job's log can be fetched alone, however long
the log is, wherever the run is.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

MARK = "shoal_job"

RUNNING = {"PENDING": "queued", "RUNNING": "running"}
ENDED = {"SUCCEEDED": "finished", "STOPPED": "killed", "FAILED": "failed"}
"""What Ray's words mean where the job did not come to say more."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended, in its own words.

    Attributes:
        how: ``finished``, ``stopped`` or ``failed``.
        code: its exit code.
        samples: the clock of the run's last checkpoint; None where no run of this job got so far.
        why: of one that failed, the reason.
    """

    how: str
    code: int
    samples: int | None = None
    why: str | None = None

    def line(self) -> str:
        """Return the line that says so."""
        return json.dumps({MARK: asdict(self)})


def parse(line: str) -> Outcome | None:
    """Return what a line of a log says of a job's outcome; None if it is any other line."""
    if not line.startswith(f'{{"{MARK}"'):
        return None
    try:
        said = json.loads(line)[MARK]
        return Outcome(**said)
    except (ValueError, TypeError, KeyError):
        return None


@dataclass(frozen=True)
class Job:
    """A job as the cluster lists it.

    Attributes:
        id: its name there.
        status: Ray's word for it.
        run: where its run is.
        command: ``train`` or ``tune``; None of a job that Shoal did not submit.
        submitted, ended: seconds since 1970; the latter None while it has not.
        node: the id of the node that its driver is on.
        message: what Ray says of a job that failed.
        code: the exit code of its driver.
        outcome: what it said itself.
        options: the words with which `shoal submit` sends the same tree and environment again; no values of secrets.
    """

    id: str
    status: str
    run: str
    command: str | None
    submitted: float
    ended: float | None
    node: str | None
    message: str
    code: int | None
    outcome: Outcome | None = None
    options: tuple[str, ...] = ()

    @classmethod
    def of(cls, details: Mapping[str, Any]) -> "Job":
        """Return the job that the cluster describes so."""
        metadata, ended = details.get("metadata") or {}, details.get("end_time")
        return cls(
            details["submission_id"],
            details["status"],
            metadata.get("shoal_run", ""),
            metadata.get("shoal_command"),
            (details.get("start_time") or time.time() * 1000) / 1000,
            ended and ended / 1000,
            details.get("driver_node_id"),
            details.get("message") or "",
            details.get("driver_exit_code"),
            options=_words(metadata.get("shoal_options", "[]")),
        )

    @property
    def live(self) -> bool:
        """Whether it has not ended."""
        return self.status in RUNNING

    @property
    def state(self) -> str:
        """Return ``queued``, ``running``, ``finished``, ``stopped``, ``failed`` or ``killed``."""
        if self.live:
            return RUNNING[self.status]
        return self.outcome.how if self.outcome else ENDED.get(self.status, self.status.lower())

    @property
    def exit_code(self) -> int:
        """Return what a shell would have been told, had the job run there."""
        if self.outcome is not None:
            return self.outcome.code
        return self.code or (0 if self.status == "SUCCEEDED" else 1)

    def plain(self) -> dict[str, Any]:
        """Return what is listed of it, for JSON."""
        told = asdict(self.outcome) if self.outcome else {"samples": None, "why": None}
        return {
            "id": self.id,
            "state": self.state,
            "command": self.command,
            "run": self.run,
            "submitted": iso(self.submitted),
            "ended": iso(self.ended),
            "samples": told["samples"],
            "why": told["why"],
            "ray_status": self.status,
        }


def iso(seconds: float | None) -> str | None:
    """Return a time as ISO 8601, with the zone of this machine."""
    return (seconds and datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")) or None


def _words(text: str) -> tuple[str, ...]:
    try:
        found = json.loads(text)
    except ValueError:  # not ours
        return ()
    return tuple(map(str, found)) if isinstance(found, list) else ()
