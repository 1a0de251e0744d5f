"""The script for Slurm is a shell's, and starts Ray as cluster.yaml does."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from shoal_ray.before_ray import HEAD_AWAY_SEC

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "distributed/shoal_ray/launch/slurm/shoal.sbatch"


def test_bash_reads_it() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck here")
def test_shellcheck_finds_nothing() -> None:
    subprocess.run(["shellcheck", SCRIPT], check=True)


def test_options_come_before_the_first_command() -> None:
    """Slurm reads no further."""
    lines = SCRIPT.read_text().splitlines()
    first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    last = max(n for n, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert last < first
    assert "#SBATCH --requeue" in lines
    assert any(re.fullmatch(r"#SBATCH --signal=B:USR1@\d+", line) for line in lines)


def test_a_dead_node_is_missed_as_quickly_as_with_cluster_yaml() -> None:
    text = SCRIPT.read_text()
    launcher = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    command = launcher["worker_start_ray_commands"][-1]
    expected = re.findall(r"RAY_health_\w+=\d+", command)
    assert expected
    assert re.findall(r"RAY_health_\w+=\d+", text) == expected
    assert "RAY_AUTH_MODE=token" in text


def test_a_node_gets_the_cpus_that_ray_is_told_of() -> None:
    """From Slurm 22.05 on, srun does not take them from the job by itself."""
    text = SCRIPT.read_text().replace("\\\n", " ")
    [step] = [line for line in text.splitlines() if "ray start --block" in line]
    before, after = step.split("ray start")
    assert '--cpus-per-task="$SLURM_CPUS_PER_TASK"' in before
    assert '--num-cpus="$SLURM_CPUS_PER_TASK"' in after


def test_nobody_waits_for_a_head_that_comes_back_as_another_cluster() -> None:
    """It keeps nothing on disk, as a head of cluster.yaml does; drivers would wait for it by themselves."""
    text = SCRIPT.read_text()
    assert "RAY_gcs_storage" not in text
    [seconds] = re.findall(r"^export RAY_gcs_rpc_server_reconnect_timeout_s=(\d+)$", text, re.MULTILINE)
    assert int(seconds) < HEAD_AWAY_SEC


def test_words_are_handed_on_as_they_are() -> None:
    """Never through a shell again: each use of the job's words is the quoted array."""
    text = SCRIPT.read_text()
    assert "eval" not in text
    assert re.findall(r"\$\*|\$@", text) == re.findall(r'(?<=")\$@(?=")', text)
