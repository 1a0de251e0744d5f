"""How many members train at once, and what each of their workers gets."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ClusterError
from shoal_ray.population.capacity import at_once, plan, share_out
from shoal_ray.resources import Resources

CPU_NODE = {"CPU": 4.0}


@given(population=st.integers(2, 24), workers=st.integers(1, 4), cpus=st.integers(1, 64), gpus=st.integers(0, 8))
def test_the_whole_population_fits_one_machine_and_nothing_more_could_be_given(
    population: int, workers: int, cpus: int, gpus: int
) -> None:
    nodes = [{"CPU": float(cpus), "GPU": float(gpus)}]
    shared = share_out(Resources(workers), population, nodes)
    each_gpu = shared.gpus_per_worker
    assert each_gpu is not None
    num = population * workers
    assert plan(shared, population, nodes, turns=False, parallel=True).slots == population
    # Ray takes a worker's share from one GPU, so that each holds a whole number of workers.
    assert sum(int(1 / each_gpu + 1e-9) for _ in range(gpus)) >= num if each_gpu else gpus == 0
    assert shared.cpus_per_worker == 1 or (shared.cpus_per_worker + 0.01) * num > cpus
    fuller = math.ceil(num / gpus) if gpus else 0
    assert each_gpu == 1 or not gpus or (each_gpu + 0.01) * fuller > 1


@pytest.mark.parametrize(
    ("resources", "population", "node", "cpus", "gpus"),
    [
        (Resources(), 4, {"CPU": 2.0}, 0.5, 0.0),
        (Resources(), 3, {"CPU": 2.0}, 0.66, 0.0),
        (Resources(2), 4, {"CPU": 2.0}, 0.25, 0.0),
        (Resources(), 4, {"CPU": 64.0, "GPU": 8.0}, 1.0, 1.0),
        (Resources(), 8, {"CPU": 16.0, "GPU": 2.0}, 1.0, 0.25),
        (Resources(), 3, {"CPU": 16.0, "GPU": 2.0}, 1.0, 0.5),  # 0.66 would leave the third without a GPU
        (Resources(gpus_per_worker=0.0), 4, {"CPU": 16.0, "GPU": 2.0}, 1.0, 0.0),
    ],
)
def test_shares_by_hand(
    resources: Resources, population: int, node: dict[str, float], cpus: float, gpus: float
) -> None:
    shared = share_out(resources, population, [node])
    assert (shared.cpus_per_worker, shared.gpus_per_worker) == (cpus, gpus)
    assert plan(shared, population, [node], turns=False, parallel=True).slots == population


def test_a_population_that_does_not_fit_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(ClusterError) as refused:
        plan(Resources(2, cpus_per_worker=0.5), 6, [CPU_NODE], turns=False, parallel=True)
    assert str(refused.value) == (
        "a population of 6 members of 2 worker(s), 0.5 CPU and 0 GPU each, and 0.7 GB of memory at least, does not fit:"
        " there is room for 4 at once. Use --population 4, a smaller --cpus-per-worker or --gpus-per-worker, a larger"
        " cluster, or --turns to train them in turns"
    )


@pytest.mark.parametrize(("turns", "parallel"), [(True, True), (False, False), (True, False)])
def test_members_take_turns_where_that_is_wanted_or_the_algorithm_does_not_mind(turns: bool, parallel: bool) -> None:
    resources = Resources(2, cpus_per_worker=0.5)
    assert plan(resources, 6, [CPU_NODE], turns=turns, parallel=parallel).slots == 4
    assert plan(resources, 3, [CPU_NODE], turns=turns, parallel=parallel).slots == 3


def test_nodes_are_counted_one_by_one() -> None:
    nodes = [{"CPU": 3.0}, {"CPU": 2.0}, {"CPU": 1.0}]
    # Workers of two CPUs: one on the first node, one on the second, none on the third.
    assert plan(Resources(1, cpus_per_worker=2), 4, nodes, turns=True, parallel=True).slots == 2
    # A member's workers may lie on several nodes.
    assert plan(Resources(2), 3, nodes, turns=False, parallel=True).slots == 3
    with pytest.raises(ClusterError, match=r"room for 3 at once\. Use --population 3"):
        plan(Resources(2), 4, nodes, turns=False, parallel=True)


def test_one_gpu_each_where_there_are_enough_and_none_is_asked_for() -> None:
    found = plan(Resources(), 2, [{"CPU": 8.0, "GPU": 2.0}], turns=False, parallel=True)
    assert found.resources.gpus_per_worker == 1
    with pytest.raises(ClusterError, match=r"1 CPU and 1 GPU each, .* there is room for 2 at once"):
        plan(Resources(), 3, [{"CPU": 8.0, "GPU": 2.0}], turns=False, parallel=True)


def test_a_member_that_does_not_fit_at_all_is_refused_even_in_turns() -> None:
    with pytest.raises(ClusterError, match="8 workers of 1 CPU each do not fit"):
        plan(Resources(8), 2, [CPU_NODE], turns=True, parallel=False)


def test_members_that_processors_have_room_for_must_find_memory_too() -> None:
    node = CPU_NODE | {"memory": 2.2e9}  # of three members with 0.7 GB each
    resources = Resources(cpus_per_worker=0.5)
    assert plan(resources, 8, [CPU_NODE], turns=False, parallel=True).slots == 8
    assert plan(resources, 3, [node], turns=False, parallel=True).slots == 3
    assert plan(resources, 8, [node], turns=True, parallel=True).slots == 3
    assert plan(resources, 8, [node, node], turns=True, parallel=True).slots == 6
    with pytest.raises(ClusterError, match=r"room for 3 at once\. Use --population 3"):
        plan(resources, 4, [node], turns=False, parallel=True)


def test_one_member_trains_whatever_memory_there_is() -> None:
    assert plan(Resources(), 4, [CPU_NODE | {"memory": 1e8}], turns=True, parallel=True).slots == 1


@pytest.mark.parametrize(
    ("population", "cpus", "parallel", "few"),
    [(16, 2.0, True, 16), (16, 2.0, False, 8), (5, 2.0, False, 5), (16, 1.0, False, 4), (3, 0.1, False, 1)],
)
def test_members_that_need_not_train_at_once_share_a_machine_a_few_at_a_time(
    population: int, cpus: float, parallel: bool, few: int
) -> None:
    assert at_once(population, [{"CPU": cpus / 2}, {"CPU": cpus / 2}, {}], parallel=parallel) == few
