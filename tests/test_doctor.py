"""The doctor on this machine, its arithmetic, and what a node without Shoal can tell; no cluster."""

import errno
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.processes import finish, start
from tests.storage.s3 import S3

from shoal_ray.doctor import Finding, clocks, examine, machine, on_node
from shoal_ray.doctor.clocks import Offset, judge, offset
from shoal_ray.doctor.gpu_findings import gpu_findings, ray_gpu_finding
from shoal_ray.doctor.pairs import Pair, judge_pairs, rounds_of_pairs


def by_what(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


# --- the command ----------------------------------------------------------------------------------------------------


def test_a_healthy_machine() -> None:
    said = finish(start("doctor"))
    assert "mend" not in said
    assert "torch" in said


def test_a_cluster_that_nobody_answers_for(tmp_path: Path) -> None:
    found = json.loads(finish(start("doctor", "--address", "127.0.0.1:1", "--json"), code=2))
    assert not found["healthy"]
    (bad,) = [finding for finding in found["findings"] if not finding["good"]]
    assert bad["what"] == "ray cluster"
    assert "127.0.0.1:1" in bad["found"]


def test_what_cannot_be_looked_at_hides_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "[b]file").write_text("")

    def broken() -> Iterator[Finding]:
        yield Finding("cpus", "[bold]one")
        raise OSError(errno.EIO, "[red]no driver")

    monkeypatch.setattr(machine, "look_at_devices", broken)
    found = by_what(examine(None, tmp_path / "[b]file"))
    assert found["cpus"].good
    assert not found["devices"].good
    assert "[red]no driver" in found["devices"].found
    assert found[f"storage {tmp_path}/[b]file"].found == "is not a folder"
    assert found["ray cluster"].good
    assert not any(what.startswith("storage") for what in by_what(examine(None, tmp_path, looks_at_storage=False)))


def test_markup_in_what_was_found_is_shown_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "[b]file").write_text("")
    assert "[b]file" in finish(start("doctor", "--storage", tmp_path / "[b]file"), code=2)


def test_a_store_is_written_and_read_back(s3: S3) -> None:
    (found,) = machine.look_at_storage(s3.root / "runs")
    assert found.good, found


# --- clocks ---------------------------------------------------------------------------------------------------------

DELAYS = st.lists(st.tuples(st.floats(1e-5, 0.2), st.floats(1e-5, 0.2)), min_size=1, max_size=12)


@given(DELAYS, st.floats(-1e5, 1e5))
def test_an_offset_is_right_to_within_its_error(delays: list[tuple[float, float]], ahead: float) -> None:
    trips, now = [], 1.7e9
    for there, back in delays:
        trips.append((now, now + there + ahead, now + there + back))
        now += there + back + 0.01
    found = offset(trips)
    assert abs(found.sec - ahead) <= found.error_sec + 1e-6
    assert found.error_sec == pytest.approx(min(there + back for there, back in delays) / 2, abs=1e-6)


def test_a_clock_that_is_wrong_is_named_with_the_direction() -> None:
    (fine,) = judge({"a": Offset(0.02, 0.001), "b": Offset(-0.4, 0.001)})
    assert fine.good
    assert "400.0 ms" in fine.found
    (slow,) = judge({"a": Offset(0.02, 0.001), "b": Offset(-90.0, 0.001)})
    assert not slow.good
    assert "b" in slow.what
    assert "90.0 s behind" in slow.found
    (slow_network,) = judge({"a": Offset(1.5, 0.8)})  # the answer took long: nobody knows
    assert slow_network.good
    assert judge({}) == []


def test_round_trips_are_taken_in_order() -> None:
    trips = clocks.round_trips(on_node.Inspector().now)
    assert len(trips) == clocks.ROUND_TRIPS
    assert all(sent <= answered <= received for sent, answered, received in trips)


# --- pairs ----------------------------------------------------------------------------------------------------------


@given(st.integers(2, 17))
def test_every_pair_plays_once_and_no_node_twice_in_a_round(size: int) -> None:
    rounds = rounds_of_pairs(size)
    assert sorted(pair for pairs in rounds for pair in pairs) == list(combinations(range(size), 2))
    for pairs in rounds:
        nodes = [node for pair in pairs for node in pair]
        assert len(nodes) == len(set(nodes))


@given(st.integers(3, 9), st.integers(0, 8), st.floats(2.5, 1000))
def test_one_slow_node_is_named_among_any_number(size: int, slow: int, factor: float) -> None:
    slow %= size
    pairs = [
        Pair((f"h{one}", f"h{two}"), 1e-4, 1e9 / (factor if slow in (one, two) else 1))
        for one, two in combinations(range(size), 2)
    ]
    (found,) = judge_pairs(pairs)
    assert not found.good
    assert f"all with h{slow}" in found.found


def test_pairs_that_are_alike_are_no_fault() -> None:
    pairs = [
        Pair((f"h{one}", f"h{two}"), 1e-4 * (1 + one), 1e9 / (1 + 0.3 * one)) for one, two in combinations(range(4), 2)
    ]
    (found,) = judge_pairs(pairs)
    assert found.good
    assert list(judge_pairs(pairs[:1])) == []
    late = [*pairs[:-1], Pair(("h2", "h3"), 5e-3, 1e9)]
    (found,) = judge_pairs(late)
    assert not found.good
    assert found.found.startswith("h2 and h3")


# --- GPUs -----------------------------------------------------------------------------------------------------------

SMI = """#!/bin/sh
case "$1" in
*name,memory.total*) for degrees in 41 89; do echo "NVIDIA A100-SXM4-40GB, 40960, 550.54.15, $degrees"; done ;;
*ecc.errors*) printf '0\\n3\\n' ;;
*thermal*) printf 'Not Active\\nActive\\n' ;;
*retired_pages*) printf '[N/A]\\n[N/A]\\n' ;;
*) echo "Field is not a valid field to query." ; exit 2 ;;
esac
"""


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program onto the path that says of two GPUs what nvidia-smi does: one is hot and has lost memory."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvidia-smi").write_text(SMI)
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")


@pytest.mark.usefixtures("nvidia_smi")
def test_gpus_that_are_not_well_are_named() -> None:
    fine, hot = gpu_findings("h1", on_node.gpus())
    assert fine.good
    assert fine.found == "NVIDIA A100-SXM4-40GB, 40 GiB, driver 550.54.15, 41 °C: healthy"
    assert not hot.good
    assert hot.what == "gpu 1 of h1"
    assert "could not be corrected (ecc.errors.uncorrected.volatile.total 3)" in hot.found
    assert "slowed down by heat" in hot.found


def test_no_gpus_where_there_is_no_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert on_node.gpus() == {"gpus": [], "gpus_error": None}
    assert list(gpu_findings("h1", on_node.gpus())) == []
    assert on_node.torch_gpus() is None


@pytest.mark.usefixtures("nvidia_smi")
@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("echo hello; echo 'Unable to determine the device handle for GPU0: Unknown Error'; exit 15", "Unknown Error"),
        ("echo 'driver/library version mismatch' >&2; exit 18", "version mismatch"),
        ("exit 9", "exit code 9"),
        ("exec tail -f /dev/null", "no answer in 2 s"),
    ],
)
def test_a_driver_that_fails_is_not_a_machine_without_gpus(
    program: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "no answer" in why:
        monkeypatch.setattr(on_node, "NVIDIA_SMI_SEC", 2)
    (tmp_path / "bin" / "nvidia-smi").write_text(f"#!/bin/sh\n{program}\n")
    (bad,) = gpu_findings("h1", on_node.gpus())
    assert (bad.good, bad.what) == (False, "gpus of h1")
    assert bad.found.startswith("nvidia-smi failed: ")
    assert bad.found.endswith(why)
    assert bad.remedy


def test_gpus_that_torch_or_ray_does_not_see() -> None:
    def said(offered: float, torch: str | None, num: int = 2, error: str | None = None) -> str:
        found = ray_gpu_finding("h1", offered, {"gpus": [{}] * num, "gpus_error": error, "torch_gpus": torch})
        return "" if found is None else found.found

    assert said(2.0, "2 12.8") == ""
    assert said(0.0, None, num=0) == ""
    assert said(1.0, "2 12.8") == "Ray offers 1 of 2"
    assert said(2.0, "0 12.8") == "torch (built for CUDA 12.8) can use 0 of 2"
    assert said(2.0, None) == "torch (built for CUDA ?) can use 0 of 2"
    assert said(1.0, None, num=0) == "Ray offers 1, and none is seen there"
    assert said(1.0, None, num=0, error="Unknown Error") == ""  # is a finding of its own


# --- on a node ------------------------------------------------------------------------------------------------------

WITHOUT_SHOAL = """
import json, pickle, sys
for name in ("shoal", "shoal_ray"):
    sys.modules[name] = None
inspector = pickle.load(sys.stdin.buffer)()
print(json.dumps([inspector.facts(("torch", "no-such-package")), inspector.sign(sys.argv[1], "node", b"token")]))
"""


def test_a_node_without_shoal_can_tell_what_it_is(tmp_path: Path) -> None:
    from ray import cloudpickle

    import shoal_ray.doctor.nodes  # noqa: F401 - registers what is sent by value

    (tmp_path / "doctor").write_bytes(b"token")
    sent = cloudpickle.dumps(on_node.Inspector)  # type: ignore[no-untyped-call]  # ray's own
    answer = subprocess.run(
        [sys.executable, "-c", WITHOUT_SHOAL, str(tmp_path)], input=sent, capture_output=True, check=False
    )
    assert answer.returncode == 0, answer.stderr.decode()
    facts, signed = json.loads(answer.stdout)
    assert facts["versions"]["torch"]
    assert facts["versions"]["no-such-package"] is None
    assert facts["free_bytes"]["/tmp"] > 0
    assert signed["sees"]
    assert not signed["error"]
    assert (tmp_path / "node").read_bytes() == b"token"
    assert pickle.loads(sent)().now() > 1.7e9


def test_a_node_is_waited_for_until_it_has_given_up_on_its_own_tools() -> None:
    from shoal_ray.doctor import nodes

    assert nodes.FACTS_SEC > on_node.NVIDIA_SMI_SEC + on_node.TORCH_SEC


def test_a_folder_that_is_another_one_is_not_signed(tmp_path: Path) -> None:
    (tmp_path / "doctor").write_bytes(b"another doctor's")
    found: dict[str, Any] = on_node.Inspector().sign(str(tmp_path), "node", b"token")
    assert not found["sees"]
    assert not (tmp_path / "node").exists()
    assert not on_node.Inspector().sign(str(tmp_path / "nowhere"), "node", b"token")["sees"]


def test_a_node_signs_at_a_uri(s3: S3) -> None:
    home = s3.root / "runs"
    (home / "doctor").write_bytes(b"token")
    found = on_node.Inspector().sign(str(home), "node", b"token")
    assert (found["sees"], found["error"]) == (True, None)
    assert (home / "node").read_bytes() == b"token"
    (home / "doctor").delete()
    assert "MissingError" in on_node.Inspector().sign(str(home), "other", b"token")["error"]


def test_the_interface_of_training_is_gloos(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_node.interfaces()["127.0.0.1"] == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert on_node.training_interface() == {"name": "lo", "address": "127.0.0.1", "bits_per_sec": None}
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "none0")
    assert on_node.training_interface()["address"] is None
