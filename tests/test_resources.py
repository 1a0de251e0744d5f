"""Whether workers fit a cluster, counted node by node."""

import math

import pytest

from shoal.errors import ClusterError
from shoal_ray.resources import Resources, check_capacity, settle_gpus

CPU_NODE = {"CPU": 4.0}
GPU_NODE = {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("resources", "nodes"),
    [
        (Resources(4), [CPU_NODE]),
        (Resources(8), [CPU_NODE, CPU_NODE]),
        (Resources(8, cpus_per_worker=0.5), [CPU_NODE]),
        (Resources(10, cpus_per_worker=0.1), [{"CPU": 1.0}]),
        (Resources(4, gpus_per_worker=1.0), [GPU_NODE, GPU_NODE]),
        (Resources(4, gpus_per_worker=0.5), [GPU_NODE]),
    ],
)
def test_what_fits_passes(resources: Resources, nodes: list[dict[str, float]]) -> None:
    check_capacity(resources, nodes)


@pytest.mark.parametrize(
    ("resources", "nodes", "message"),
    [
        (
            Resources(5),
            [CPU_NODE],
            r"5 workers of 1 CPU .* 4 CPUs and 0 GPUs on 1 node\(s\), room for 4; use --workers 4",
        ),
        # Six CPUs in all, but no node has three to give twice.
        (Resources(2, cpus_per_worker=3), [{"CPU": 4.0}, {"CPU": 2.0}], "room for 1; use --workers 1"),
        (Resources(3, gpus_per_worker=1.0), [GPU_NODE, CPU_NODE], "1 CPU, 1 GPU each .* a smaller --gpus-per-worker"),
        (Resources(1, cpus_per_worker=100), [CPU_NODE], "room for 0; ask for less, a smaller --cpus-per-worker"),
        (Resources(1, cpus_per_worker=math.nan), [CPU_NODE], "--cpus-per-worker nan is not an amount"),
        (Resources(1, gpus_per_worker=1.5), [GPU_NODE], "use 1, or less than 1"),
    ],
)
def test_what_does_not_fit_says_what_does(resources: Resources, nodes: list[dict[str, float]], message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        check_capacity(resources, nodes)


def test_gpus_are_chosen_where_every_worker_can_have_one() -> None:
    assert settle_gpus(Resources(2), [GPU_NODE]).gpus_per_worker == 1.0
    assert settle_gpus(Resources(3), [GPU_NODE]).gpus_per_worker == 0.0
    assert settle_gpus(Resources(2, gpus_per_worker=0.0), [GPU_NODE]).gpus_per_worker == 0.0
