"""Of two jobs that are submitted for one run at the same moment, each seen only after both were sent, one goes on."""

from collections.abc import Iterator

import pytest
from tests.submission.dashboard import Dashboard, dashboard

from shoal.errors import ClusterError
from shoal_ray.cli.submit import refuse_twin, withdraw_if_second
from shoal_ray.submission.api import JobsApi
from shoal_ray.submission.words import Words

ASKED = Words("train", ("train", "vae", "--out", "/runs/x"), "/runs/x", resume=False)


@pytest.fixture
def cluster() -> Iterator[Dashboard]:
    with dashboard() as found:
        yield found


def submit(cluster: Dashboard, job: str, at: int, place: str = "/runs/x", status: str = "PENDING") -> None:
    cluster.add(job, status, start_time=at, metadata={"shoal_command": "train", "shoal_run": place})


@pytest.mark.parametrize("later", [1, 0], ids=["a moment later", "in the same millisecond"])
@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_whoever_looks_first_the_same_one_goes_on(cluster: Dashboard, order: tuple[str, str], later: int) -> None:
    submit(cluster, "other", 5, place="/runs/y")
    submit(cluster, "ended", 6, status="FAILED")
    submit(cluster, "one", 7)
    submit(cluster, "two", 7 + later)
    api, said = JobsApi(cluster.address, None), dict[str, str]()
    for job in order:
        try:
            withdraw_if_second(api, ASKED, job)
        except ClusterError as error:
            said[job] = str(error)
    assert said == {"two": "job one was submitted for /runs/x a moment before; two was withdrawn"}
    assert [job.id for job in api.jobs() if job.live and job.run == "/runs/x"] == ["one"]


@pytest.mark.parametrize(
    ("resuming", "remedy"), [(False, "give another --out"), (True, "stop it first, and submit again")]
)
def test_a_run_that_a_job_trains_is_refused_with_what_to_do(cluster: Dashboard, resuming: bool, remedy: str) -> None:
    submit(cluster, "one", 7)
    api = JobsApi(cluster.address, None)
    with pytest.raises(ClusterError, match=rf"^job one trains /runs/x now; {remedy}, or wait for it$"):
        refuse_twin(api, ASKED, "two", resuming=resuming)
    api.stop("one")
    refuse_twin(api, ASKED, "two", resuming=resuming)
    with pytest.raises(ClusterError, match=r"^there is a job one already \(killed\); give another --name$"):
        refuse_twin(api, ASKED, "one", resuming=resuming)
