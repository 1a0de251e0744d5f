"""Real searches on a real Ray cluster: what is killed comes back, and the population comes to the same end."""

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.processes import descendants, finish, start, wait_until

from shoal.checkpoint import newest
from shoal.data.write import write_dataset
from shoal.model import load_model
from shoal.run import Run, read_rows

SEARCH = """
run: seed-autoencoder
set: {nets.hidden: [24], batch: 15, report.images_every_samples: 0}
space:
  optim.lr: {log_uniform: [1.0e-4, 1.0e-2]}
  nets.latent: {ladder: [2, 4, 8]}
population: 3
generation_samples: 9_000
generations: 5
fitness: {metric: quality/mse, mode: min, price: {nets.latent: 1.0e-4}, images: 20}
exploit: {min_gap: 0, max_share: 1.0}
"""
GENERATIONS = 5

Row = dict[str, Any]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (8, 1, 8, 8))
    images = np.clip(patterns[rng.integers(0, 8, 256)] + rng.integers(-20, 21, (256, 1, 8, 8)), 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("search") / "data"
    splits = {"train": [(images[:200], None)], "test": [(images[200:], None)]}
    write_dataset(path, splits, shape=(1, 8, 8), class_names=None, source="test", rows_per_block=32)
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "search.yaml"
    path.write_text(SEARCH)
    return path


@pytest.fixture(scope="module")
def undisturbed(data: Path, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Search without a fault; what the disturbed searches must come to."""
    path = tmp_path_factory.mktemp("undisturbed") / "search"
    said = finish(start("tune", config, "--data", data, "--out", path))
    assert f"generation {GENERATIONS} of {GENERATIONS}" in said
    return path


def population(path: Path) -> dict[tuple[int, int], tuple[float, Row]]:
    """Return fitness and values by member and generation."""
    rows = read_rows(path / "population.jsonl")
    found = {(row["member"], row["generation"]): (row["fitness"], row["values"]) for row in rows}
    assert len(found) == len(rows)
    return found


def lineage(path: Path, event: str) -> list[Row]:
    return [row for row in read_rows(path / "lineage.jsonl") if row["event"] == event]


def kill(driver: int, title: bytes, num: int = 1) -> None:
    """Kill so many of a search's processes, found by their title."""
    victims = sorted(pid for pid, found in descendants(driver).items() if title in found)
    assert len(victims) >= num, (title, list(descendants(driver).values()))
    for victim in victims[:num]:
        os.kill(victim, signal.SIGKILL)


def rows_of(path: Path) -> Callable[[], int]:
    return lambda: len(read_rows(path / "population.jsonl"))


def assert_consistent(path: Path) -> None:
    """Check that every member's history is one chain, that every donor existed, and what lies on disk."""
    journal = read_rows(path / "lineage.jsonl")
    seen: dict[int, list[int]] = {row["member"]: [0] for row in journal if row["event"] == "birth"}
    rows = {(row["member"], row["samples"]): row for row in read_rows(path / "population.jsonl")}
    for row in journal:
        if row["event"] == "exploit":
            assert (row["donor"], row["donor_samples"]) in rows
            assert rows[row["member"], row["samples"]]["fitness"] == row["before"]
            assert row["samples"] >= seen[row["member"]][-1], "a member never goes back"
            assert row["samples"] not in seen[row["member"]][1:], "one exploit at a clock"
            seen[row["member"]].append(row["samples"])
    orders = [row["seq"] for row in journal if row["event"] == "exploit"]
    assert orders == sorted(set(orders))
    for member in seen:
        steps = [row["samples"] for row in Run.open(path / "members" / f"{member:03d}").metrics()]
        assert steps == sorted(set(steps))
        values = {row["generation"]: row["values"] for row in rows.values() if row["member"] == member}
        changes = {
            row["samples"]: row["new"] for row in journal if row["event"] == "exploit" and row["member"] == member
        }
        for (owner, samples), row in rows.items():
            if owner == member and samples in changes and row["generation"] + 1 in values:
                assert values[row["generation"] + 1] == changes[samples], "no exploit is forgotten"


def assert_best_is_true(path: Path) -> None:
    """Check that ``best/`` loads, and is the best of all rows with the values that made it."""
    model = load_model(path / "best", torch.device("cpu"))
    best = min(read_rows(path / "population.jsonl"), key=lambda row: row["fitness"])
    assert model.samples == best["samples"]
    assert model.config.nets.latent == best["values"]["nets.latent"]
    assert model.config.optim.lr == best["values"]["optim.lr"]


def test_an_undisturbed_search_pauses_and_restarts_nobody(undisturbed: Path) -> None:
    assert len(population(undisturbed)) == 3 * GENERATIONS
    assert len(lineage(undisturbed, "start")) == 3
    exploits = lineage(undisturbed, "exploit")
    assert exploits
    assert [row["seq"] for row in lineage(undisturbed, "loaded")] == [row["seq"] for row in exploits]
    assert {row["source"] for row in lineage(undisturbed, "loaded")} == {"memory"}
    assert any(row["old"]["nets.latent"] != row["new"]["nets.latent"] for row in exploits)
    assert {row["reason"] for row in lineage(undisturbed, "death")} == {"finished"}
    assert_consistent(undisturbed)
    assert_best_is_true(undisturbed)
    measured = json.loads((undisturbed / "best" / "eval.json").read_text())
    assert measured["split"] == "test"


def test_the_winning_line_trained_again_gives_the_same_weights(undisturbed: Path, data: Path, tmp_path: Path) -> None:
    winner, run = tmp_path / "winner.yaml", tmp_path / "run"
    finish(start("lineage", undisturbed, "--export", winner))
    finish(start("train", winner, "--data", data, "--out", run, "--local"))
    best, again = newest(undisturbed / "best" / "checkpoints"), newest(run / "checkpoints")
    assert best is not None
    assert again is not None
    assert best.samples == again.samples
    expected, found = best.tensors(), again.tensors()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_a_killed_worker_killed_members_and_a_killed_switchboard_change_nothing(
    undisturbed: Path, data: Path, config: Path, tmp_path: Path
) -> None:
    path = tmp_path / "search"
    process = start("tune", config, "--data", data, "--out", path)
    rows = rows_of(path)
    wait_until(lambda: rows() >= 2, process)
    kill(process.pid, b"ray::RayTrainWorker")
    # At the very moment at which its new workers are about to get their place, which would else be lost for good.
    wait_until(lambda: len(lineage(path, "workers")) >= 4, process)
    kill(process.pid, b"Trainable", num=3)
    wait_until(lambda: rows() >= 8, process)
    kill(process.pid, b"ray::Switchboard")
    said = finish(process)
    assert population(path) == population(undisturbed), said
    assert len(lineage(path, "start")) == 6
    assert_consistent(path)
    assert_best_is_true(path)


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)], ids=lambda number: number.name
)
def test_a_driver_that_ends_is_resumed(
    undisturbed: Path, data: Path, config: Path, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "search"
    process = start("tune", config, "--data", data, "--out", path)
    rows = rows_of(path)
    wait_until(lambda: rows() >= 4, process)
    process.send_signal(number)
    said = process.communicate()[0]
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), said
    left = population(path)
    assert len(left) < 3 * GENERATIONS
    said = finish(start("tune", "--resume", "--out", path))
    assert population(path) == population(undisturbed), said
    assert_consistent(path)
    assert_best_is_true(path)


@pytest.mark.slow
def test_a_member_that_diverges_takes_weights_and_gives_none(data: Path, config: Path, tmp_path: Path) -> None:
    path = tmp_path / "search"
    words = ("space.optim.lr={choice: [1.0e-3, 1.0e+38], resample: 0}", "population=4", "generations=3")
    finish(start("tune", config, *words, "--data", data, "--out", path))
    diverged = {
        (row["member"], row["generation"]) for row in read_rows(path / "population.jsonl") if row["fitness"] is None
    }
    first = {member for member, generation in diverged if generation == 1}
    assert first
    taken = lineage(path, "exploit")
    assert first <= {row["member"] for row in taken}
    assert all(row["after"] is not None for row in taken)
    assert all(row["before"] is None for row in taken if row["samples"] < 10_000 and row["member"] in first)
    assert_consistent(path)
    load_model(path / "best", torch.device("cpu"))


@pytest.mark.slow
def test_a_population_that_diverges_altogether_stops_with_the_reason(data: Path, config: Path, tmp_path: Path) -> None:
    words = ("space.optim.lr={uniform: [1.0e+38, 2.0e+38]}", "population=2")
    said = finish(start("tune", config, *words, "--data", data, "--out", tmp_path / "search"), code=2)
    assert "all members have diverged" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [("synchronous=false", "--turns"), ("--turns",), ("algorithm=asha", "reduction_factor=2")],
    ids=["asynchronous-in-turns", "in-turns", "asha"],
)
def test_more_members_than_fit_at_once(data: Path, config: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    path = tmp_path / "search"
    cpus = os.cpu_count() or 1
    said = finish(
        start(
            "tune", config, *words, "generations=3", "--data", data, "--out", path, "--cpus-per-worker", str(cpus / 2)
        )
    )
    assert "3 members, 2 at once" in said
    ends = {row["member"]: row for row in lineage(path, "death")}
    assert ends.keys() == {0, 1, 2}
    full = {member for (member, generation) in population(path) if generation == 3}
    if "algorithm=asha" in words:
        assert {row["reason"] for row in ends.values()} == {"finished", "stopped early"}
    else:
        assert full == {0, 1, 2}
    assert_consistent(path)
    assert_best_is_true(path)


@pytest.fixture
def two_nodes() -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the address of a cluster of two nodes on this machine, and what kills the one that is not the head."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "dashboard_port": None})
    try:
        other = cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
        yield cluster.address, lambda: cluster.remove_node(other, allow_graceful=False)
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]  # ray's own


@pytest.mark.slow
def test_a_lost_node_changes_nothing(
    two_nodes: tuple[str, Callable[[], None]], undisturbed: Path, data: Path, config: Path, tmp_path: Path
) -> None:
    address, lose_node = two_nodes
    path = tmp_path / "search"
    words = ("--address", address, "--cpus-per-worker", "0.6", "--max-failures", "-1")
    process = start("tune", config, "--data", data, "--out", path, *words)
    rows = rows_of(path)
    wait_until(lambda: rows() >= 4, process)
    lose_node()
    said = finish(process)
    assert population(path) == population(undisturbed), said
    assert_consistent(path)
    assert_best_is_true(path)


@pytest.mark.slow
def test_a_search_killed_at_twenty_random_moments_comes_to_the_same_end(
    undisturbed: Path, data: Path, config: Path, tmp_path: Path
) -> None:
    path = tmp_path / "search"
    rng = random.Random(0)
    words: tuple[str | Path, ...] = ("tune", config, "--data", data, "--out", path)
    for _ in range(20):
        process = start(*words)
        try:
            process.wait(rng.uniform(8, 40))  # from before the first worker to beyond the last generation
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        if (path / "search.yaml").is_file():
            words = ("tune", "--resume", "--out", path)
            assert_consistent(path)
    finish(start(*words))
    assert population(path) == population(undisturbed)
    assert_consistent(path)
    assert_best_is_true(path)
