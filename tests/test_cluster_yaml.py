"""cluster.yaml is what this Ray accepts, and installs and starts what this project is."""

import ipaddress
import mmap
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
ON_NODE = "~/shoal"


@pytest.fixture
def cluster() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def words(command: str) -> list[str]:
    return shlex.split(command)


def node_environment(command: str) -> dict[str, str]:
    before = words(command)[: words(command).index("ray")]
    return dict(word.split("=", 1) for word in before if "=" in word)


@pytest.mark.parametrize("num", [0, 1, 2, 5])
def test_ray_accepts_it_and_keeps_every_worker(num: int, cluster: dict[str, Any]) -> None:
    """With any number of addresses, and nothing else to change."""
    cluster["provider"]["worker_ips"] = [f"10.0.0.{number}" for number in range(2, 2 + num)]
    prepared = prepare_config(cluster)
    validate_config(prepared)
    kind = prepared["available_node_types"][prepared["head_node_type"]]
    assert kind["min_workers"] == kind["max_workers"] == prepared["max_workers"] == num


def test_ray_would_refuse_a_misspelt_key(cluster: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="'worker_start_ray_comands' was unexpected"):
        validate_config(prepare_config(cluster | {"worker_start_ray_comands": []}))


def test_addresses_are_nobody_s(cluster: dict[str, Any]) -> None:
    documentation = ipaddress.ip_network("192.0.2.0/24")  # RFC 5737
    for address in [cluster["provider"]["head_ip"], *cluster["provider"]["worker_ips"]]:
        assert ipaddress.ip_address(address) in documentation


def test_brings_all_that_the_build_reads_and_installs_it(cluster: dict[str, Any], project: dict[str, Any]) -> None:
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    needed |= {package.split("/")[0] for package in packages}
    mounts = {remote: local for remote, local in cluster["file_mounts"].items() if remote.startswith(f"{ON_NODE}/")}
    assert mounts == {f"{ON_NODE}/{name}": name for name in needed}
    assert all((ROOT / local).exists() for local in mounts.values())
    installs = [words(command) for command in cluster["setup_commands"] if "pip install" in command]
    assert [command[0] for command in installs] == [f"{ON_NODE}/.venv/bin/pip"]
    # Nothing else is named, so that the versions on the nodes, of Ray above all, are those that pyproject.toml allows.
    assert [word for word in installs[0][2:] if not word.startswith("--")] == [ON_NODE]


def test_nodes_get_the_ray_that_was_asked_here(project: dict[str, Any]) -> None:
    requirements = [Requirement(text) for text in project["project"]["dependencies"]]
    [wanted] = [requirement for requirement in requirements if requirement.name == "ray"]
    assert wanted.specifier.contains(ray.__version__)
    assert "default" in wanted.extras  # the launcher and the job server


@pytest.mark.parametrize("minor", range(9, 17))
def test_asks_for_the_pythons_of_pyproject(
    minor: int, cluster: dict[str, Any], project: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    python, option, program = words(cluster["setup_commands"][0])
    assert (python, option) == ("python3", "-c")
    refused = False
    with monkeypatch.context() as patched:
        patched.setattr(sys, "version_info", (3, minor, 4, "final", 0))
        try:
            exec(program, {})
        except SystemExit as error:
            refused = error.code != 0
    assert refused != SpecifierSet(project["project"]["requires-python"]).contains(f"3.{minor}.4")


@pytest.mark.parametrize("role", ["head", "worker"])
def test_starts_a_node_that_is_closed_to_strangers_and_quick_to_be_missed(role: str, cluster: dict[str, Any]) -> None:
    commands = cluster[f"{role}_start_ray_commands"]
    assert commands[:2] == ["ray stop --grace-period=30", "ray stop --force"]
    environment = node_environment(commands[-1])
    assert environment["RAY_AUTH_MODE"] == "token"
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    checks = {name: int(value) for name, value in environment.items() if name.startswith("RAY_health_check_")}
    period, patience = checks["RAY_health_check_period_ms"], checks["RAY_health_check_failure_threshold"]
    assert period * patience + checks["RAY_health_check_timeout_ms"] <= 3000
    assert "env -u OMP_NUM_THREADS" in commands[-1]


def test_head_and_workers_agree(cluster: dict[str, Any]) -> None:
    head, worker = (node_environment(cluster[f"{role}_start_ray_commands"][-1]) for role in ("head", "worker"))
    assert worker.items() <= head.items()
    assert head.keys() - worker.keys() == {"RAY_enable_autoscaler_v2", "RAY_gcs_storage", "RAY_gcs_storage_path"}
    head_words, worker_words = (words(cluster[f"{role}_start_ray_commands"][-1]) for role in ("head", "worker"))
    assert "--dashboard-host=127.0.0.1" in head_words
    [port] = [word.removeprefix("--port=") for word in head_words if word.startswith("--port=")]
    assert worker_words[-1] == f"--address=$RAY_HEAD_IP:{port}"
    folder = head["RAY_gcs_storage_path"].replace("$HOME", "~")
    assert f"mkdir -p {folder}" in cluster["head_start_ray_commands"]


def test_ray_knows_every_variable(cluster: dict[str, Any]) -> None:
    """Ray ignores a misspelt one in silence; those that it reads are strings in its head process."""
    program = Path(ray.__file__).parent / "core/src/ray/gcs/gcs_server"
    with program.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as code:
        for name in node_environment(cluster["head_start_ray_commands"][-1]):
            assert code.find(f"\0{name}\0".encode()) >= 0, name
        assert code.find(b"\0RAY_health_check_periods_ms\0") < 0
