"""Whether workers fit a cluster, counted node by node."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ClusterError, ConfigError
from shoal_ray.resources import (
    HEAD,
    SETTLE_SEC,
    Resources,
    check_capacity,
    choose_workers,
    fitting,
    grown,
    parse_workers,
    settle_gpus,
)

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
        (Resources(9, min_workers=4), [CPU_NODE]),
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
        (Resources(9, min_workers=5), [CPU_NODE], "5 workers of 1 CPU each do not fit"),
    ],
)
def test_what_does_not_fit_says_what_does(resources: Resources, nodes: list[dict[str, float]], message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        check_capacity(resources, nodes)


def test_gpus_are_chosen_where_every_worker_can_have_one() -> None:
    assert settle_gpus(Resources(2), [GPU_NODE]).gpus_per_worker == 1.0
    assert settle_gpus(Resources(3), [GPU_NODE]).gpus_per_worker == 0.0
    assert settle_gpus(Resources(2, gpus_per_worker=0.0), [GPU_NODE]).gpus_per_worker == 0.0
    assert settle_gpus(Resources(8, min_workers=2), [GPU_NODE]).gpus_per_worker == 1.0


@pytest.mark.parametrize(("text", "found"), [("3", (None, 3)), ("2-4", (2, 4)), ("2-2", (2, 2)), (" 1-3 ", (1, 3))])
def test_numbers_of_workers(text: str, found: tuple[int | None, int]) -> None:
    assert parse_workers(text) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4-2", "--workers 4-2: the least comes first; give 2-4"),
        ("0", "needs one worker at least; give 1"),
        ("0-3", "needs one worker at least; give 3"),
        ("-1", "--workers -1: give a number of workers, or the least and the most, e.g. 2-4"),
        ("two", "--workers two: give a number"),
        ("1-2-3", "--workers 1-2-3: give a number"),
        ("2..4", "give a number"),
        ("", "give a number"),
        ("²", "give a number"),
    ],
)
def test_what_is_no_number_of_workers_says_what_is(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_workers(text)
    assert message in str(refused.value)


def test_resources_in_words() -> None:
    assert str(Resources(2)) == "2 worker(s) of 1 CPU"
    assert str(Resources(4, 0.5, 1.0, 2)) == "2 to 4 worker(s) of 0.5 CPU + 1 GPU"


HEAD_NODE = {"CPU": 0.0, HEAD: 1.0, "shoal_nodes": 3.0, "shoal_node_CPU": 8.0, "shoal_node_GPU": 1.0}
TO_COME = {"CPU": 8.0, "GPU": 1.0}


def test_a_cluster_that_grows_counts_what_is_to_come_and_nothing_twice() -> None:
    for here in range(5):
        nodes = [HEAD_NODE, *[GPU_NODE] * here]
        assert grown(nodes) == [*nodes, *[TO_COME] * max(0, 3 - here)]
    assert grown([GPU_NODE]) == [GPU_NODE]
    resources = settle_gpus(Resources(3), grown([HEAD_NODE]))
    assert resources.gpus_per_worker == 1.0
    check_capacity(resources, grown([HEAD_NODE]))
    with pytest.raises(ClusterError, match="room for 3"):
        check_capacity(Resources(4, gpus_per_worker=1.0), grown([HEAD_NODE]))


@pytest.mark.parametrize(("free", "possible", "chosen"), [(0, 4, 4), (1, 4, 4), (2, 4, None), (0, 1, None), (4, 4, 4)])
def test_an_elastic_run_waits_as_a_group_for_nodes_that_come_only_for_what_waits(
    free: int, possible: int, chosen: int | None
) -> None:
    assert choose_workers(Resources(8, min_workers=2), free, possible, 0.0, grows=True) == chosen


COUNTS = st.integers(min_value=0, max_value=12)


@given(st.integers(1, 8), st.integers(0, 8), COUNTS, COUNTS, st.floats(0, 10))
def test_an_elastic_run_starts_with_what_fits_within_its_range(
    least: int, more: int, free: int, used: int, waited: float
) -> None:
    resources, there = Resources(least + more, min_workers=least), free + used
    chosen = choose_workers(resources, free, there, waited)
    if chosen is not None:
        assert least <= chosen <= min(resources.workers, free)
    best = min(resources.workers, there)
    if free >= best >= least:
        assert chosen == best  # nothing better is to come: no waiting
    elif free >= least and waited >= SETTLE_SEC:
        assert chosen == min(free, resources.workers)
    else:
        assert chosen is None


@given(st.integers(1, 8), COUNTS, COUNTS, st.floats(0, 10))
def test_a_run_of_fixed_size_asks_for_it_whatever_is_free(workers: int, free: int, used: int, waited: float) -> None:
    assert choose_workers(Resources(workers), free, free + used, waited) == workers


@given(st.lists(st.fixed_dictionaries({"CPU": st.floats(0, 16), "GPU": st.floats(0, 4)}), max_size=4), st.data())
def test_what_fits_fits_node_by_node(nodes: list[dict[str, float]], data: st.DataObject) -> None:
    cpus, gpus = data.draw(st.sampled_from([0.25, 1.0, 2.0])), data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    resources = Resources(1, cpus, gpus)
    fit = fitting(resources, nodes)
    assert fit == sum(fitting(resources, [node]) for node in nodes)
    assert fit * cpus <= sum(node["CPU"] for node in nodes) + 1e-6
    assert fit * gpus <= sum(node["GPU"] for node in nodes) + 1e-6
