"""Whatever happens to a run, it loses nothing but the work since its last checkpoint."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from tests.hosts.cluster import RayCluster
from tests.hosts.faults import FAULTS
from tests.hosts.scenario import INJECTED_AT, carry_out
from tests.hosts.table import page
from tests.hosts.training import BATCH, CHECKPOINT, STEPS, Undisturbed

TIMES = int(os.environ.get("FAULTS_TIMES", "1"))
RECORD = os.environ.get("FAULTS_RECORD")
PAGE = os.environ.get("FAULTS_PAGE")
"""For ``make faults``: how often each fault happens; the file that gets a row for each; the page that is made of it."""

IN_EVERY_TEST_RUN = "killed-worker"


CASES = [
    pytest.param(key, turn, marks=() if key == IN_EVERY_TEST_RUN else pytest.mark.hosts)
    for key, fault in FAULTS.items()
    for turn in range(max(TIMES, fault.turns))
]


@pytest.mark.parametrize(("key", "turn"), CASES)
def test_nothing_is_lost(
    key: str,
    turn: int,
    cluster: RayCluster,
    shared: Path,
    data: Path,
    undisturbed: Callable[..., Undisturbed],
    request: pytest.FixtureRequest,
) -> None:
    fault = FAULTS[key]
    where = request.getfixturevalue("disk") if fault.storage == "disk" else shared
    store = request.getfixturevalue("store") if fault.storage == "store" else None
    expected = undisturbed("autoencoder", fault.like)
    figures = carry_out(fault, cluster, where / f"{key}-{turn}", data, expected, store)
    if RECORD:
        with Path(RECORD).open("a") as file:
            file.write(json.dumps({"key": key, **asdict(figures)}) + "\n")


@pytest.fixture(scope="module", autouse=True)
def written_page() -> Iterator[None]:
    """Write the page in the end, if every fault has happened as often as it should."""
    yield
    if RECORD and PAGE and Path(RECORD).exists():
        lines = Path(RECORD).read_text().splitlines()
        seen = Counter(json.loads(line)["key"] for line in lines)
        if all(seen[key] >= TIMES for key in FAULTS):
            names = {key: fault.name for key, fault in FAULTS.items()}
            facts = {"steps": STEPS, "batch": BATCH, "checkpoint": CHECKPOINT, "injected": INJECTED_AT}
            Path(PAGE).write_text(page(names, lines, **facts))
