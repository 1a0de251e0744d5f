"""What is made of the answer of a job that only checks."""

from collections.abc import Iterator

import pytest
from tests.submission.dashboard import Dashboard, dashboard

from shoal.errors import ClusterError, ConfigError
from shoal_ray.cli.jobs import job_name
from shoal_ray.submission import probe
from shoal_ray.submission.api import JobsApi
from shoal_ray.submission.outcome import Outcome


@pytest.fixture
def cluster() -> Iterator[Dashboard]:
    with dashboard() as found:
        yield found


def ask(cluster: Dashboard, outcome: Outcome, log: str = "") -> list[str]:
    """Ask a cluster whose job ends so."""

    def end(job: dict[str, object]) -> None:
        name = str(job["submission_id"])
        cluster.jobs[name]["status"] = "FAILED" if outcome.code else "SUCCEEDED"
        cluster.logs[name] = f"{log}{outcome.line()}\n"

    cluster.submitted = end
    return probe.ask(JobsApi(cluster.address, None), ["train", "--check"], "/x", {})


def test_a_refusal_is_passed_on_as_it_is(cluster: Dashboard) -> None:
    assert ask(cluster, Outcome("finished", 0)) == []
    with pytest.raises(probe.RefusedError, match=r"^no data set at /x; give another$"):
        ask(cluster, Outcome("failed", 2, None, "no data set at /x; give another"))


@pytest.mark.parametrize(
    ("outcome", "log"),
    [
        (Outcome("failed", 1, None, "KeyError: 'x'"), "Traceback (most recent call last):\nKeyError: 'x'\n"),
        (Outcome("failed", 2), "Usage: shoal train\nNo such option: --new\n"),
        (Outcome("stopped", 143), "Terminated\n"),
    ],
)
def test_what_is_no_refusal_is_shown_with_the_log(cluster: Dashboard, outcome: Outcome, log: str) -> None:
    with pytest.raises(ClusterError, match="could not even look whether it can train this; it said:\n") as trouble:
        ask(cluster, outcome, log)
    assert all(line in str(trouble.value) for line in log.splitlines())
    assert "shoal_job" not in str(trouble.value)


def test_only_questions_of_before_are_forgotten(cluster: Dashboard) -> None:
    cluster.add("shoal-check-old", "SUCCEEDED", end_time=1)
    cluster.add("shoal-check-mine", "SUCCEEDED", end_time=1, metadata={"shoal_command": "train"})
    cluster.add("another", "SUCCEEDED", end_time=1)
    ask(cluster, Outcome("finished", 0))
    assert {"shoal-check-mine", "another"} < set(cluster.jobs)
    assert "shoal-check-old" not in cluster.jobs


def test_no_job_is_called_as_a_question_is() -> None:
    with pytest.raises(ConfigError, match="--name shoal-check-x begins as the jobs do that only check"):
        job_name("shoal-check-x")
    assert job_name("shoal-check-x", mend=True) == "job-shoal-check-x"
    assert job_name("shoal-checked") == "shoal-checked"
    for text in ("a b/c", "ä", "--x.", "y" * 100, ""):
        name = job_name(text, mend=True)
        assert job_name(name) == name
