"""Asking the cluster, before a job is submitted, whether it could train: by a short job that is forgotten after."""

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from shoal.errors import USER_ERROR, ClusterError, ShoalError
from shoal_ray.submission import nodes_told
from shoal_ray.submission.api import JobsApi
from shoal_ray.submission.entry import CHECK, entrypoint
from shoal_ray.submission.follow import readable

ANSWER_SEC = 300.0
"""Unpacking the tree, importing torch, and the preflight on every node, together."""

LOOK_SEC = 0.3
PREFIX = "shoal-check-"

FORGET_SEC = 60.0
"""A job that is deleted as soon as it has ended comes back: Ray's own watch over it notices the end a second later, and
writes down that a job, of which nothing is known, has failed. So questions are forgotten when the next one is asked."""

LOST_PACKAGE = "Failed to download runtime_env file package"
"""Ray's words where a node does not find what was uploaded: it is deleted when the last job that uses it ends."""

TAIL = 12
"""Lines of the log that are shown where the job had no answer."""


class RefusedError(ShoalError):
    """What the cluster said to a run that it cannot train: the message of the preflight there."""


class LostPackageError(RefusedError):
    """A node did not find what was uploaded: to be uploaded again."""


def ask(api: JobsApi, words: Sequence[str], run: str, runtime_env: Mapping[str, Any]) -> list[str]:
    """Have the cluster carry out ``words``, which only check; when all is well, return the Python of every node.

    The very job that is to come runs there as far as the point where it would write: with the same tree, environment
    and words, on the head, in touch with every node. So its answer is what the job itself would say.

    Raises:
        RefusedError: the answer, as it would be given on one machine.
        LostPackageError: a node lacks the package.
        ClusterError: there was none.
    """
    name = PREFIX + secrets.token_hex(4)
    _forget_old(api)
    try:
        # Not listed among the jobs: it has no run of its own.
        api.submit(
            name,
            entrypoint(CHECK, run, words),
            runtime_env=nodes_told.with_variable(runtime_env, nodes_told.ASK),
            metadata={},
        )
        deadline = time.monotonic() + ANSWER_SEC
        while (job := api.job(name)).live:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"the cluster did not say within {ANSWER_SEC:g} s whether it can train this; `shoal doctor"
                    " --address auto`, on a node of it, shows what is the matter"
                )
            time.sleep(LOOK_SEC)
        log, outcome = readable(api.log(name)) if job.node else (job.message, None)
        if outcome is None:
            raise ClusterError(_no_answer(log or job.message))
        if outcome.code == USER_ERROR and outcome.why:
            raise (LostPackageError if LOST_PACKAGE in outcome.why else RefusedError)(outcome.why)
        if outcome.code:  # a bug, or it was stopped: of no use without the log
            raise ClusterError(_no_answer(log))
        return nodes_told.heard(log)
    except BaseException:
        with suppress(ClusterError):
            api.stop(name)  # nobody waits for the answer any more
        raise


def _forget_old(api: JobsApi) -> None:
    """Take the questions of before off Ray's list of jobs; nothing that trains, whatever it is called."""
    for job in api.all_jobs():
        is_question = job.command is None and job.id.startswith(PREFIX)
        if is_question and job.ended is not None and time.time() - job.ended > FORGET_SEC:
            with suppress(ClusterError):  # somebody else did
                api.delete(job.id)


def _no_answer(log: str) -> str:
    if "No module named 'shoal" in log:
        return (
            "the cluster's Python has no shoal; `ray up cluster.yaml` installs it on every node, or submit from a"
            " checkout of Shoal, which goes along"
        )
    if "python: not found" in log or "python: command not found" in log:
        return "the cluster finds no `python`; put the one that has ray and torch on the PATH of `ray start`"
    tail = "\n  ".join(log.strip().splitlines()[-TAIL:])
    return f"the cluster could not even look whether it can train this; it said:\n  {tail}"
