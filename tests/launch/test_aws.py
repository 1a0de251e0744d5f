"""The file for AWS is cluster.yaml, but for what a cloud is."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def aws() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "distributed/shoal_ray/launch/cluster-aws.yaml").read_text()))


@pytest.fixture(scope="module")
def local() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


def test_ray_accepts_it(aws: dict[str, Any]) -> None:
    prepared = prepare_config(aws)
    validate_config(prepared)
    assert prepared["available_node_types"]["gpu"]["max_workers"] == aws["max_workers"]


@pytest.mark.parametrize("key", ["file_mounts", "rsync_exclude", "setup_commands", "worker_start_ray_commands"])
def test_nodes_are_installed_and_started_alike(key: str, aws: dict[str, Any], local: dict[str, Any]) -> None:
    assert aws[key] == local[key]


def test_the_head_is_started_alike_but_for_what_only_a_local_cluster_needs(
    aws: dict[str, Any], local: dict[str, Any]
) -> None:
    expected = [command.replace("RAY_enable_autoscaler_v2=0 ", "") for command in local["head_start_ray_commands"]]
    assert aws["head_start_ray_commands"] == expected


def test_nothing_waits_for_money_and_the_head_trains_nothing(aws: dict[str, Any]) -> None:
    types = aws["available_node_types"]
    assert types["gpu"]["min_workers"] == 0
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    head = types[aws["head_node_type"]]["resources"]
    assert head == {"CPU": 0, "shoal_nodes": types["gpu"]["max_workers"], "shoal_node_CPU": 8, "shoal_node_GPU": 1}
    assert "InstanceMarketOptions" not in types[aws["head_node_type"]]["node_config"]


def test_disks_are_encrypted_and_credentials_are_not_to_be_tricked_out(aws: dict[str, Any]) -> None:
    profiles = set()
    for kind in aws["available_node_types"].values():
        config = kind["node_config"]
        assert all(disk["Ebs"]["Encrypted"] is True for disk in config["BlockDeviceMappings"])
        assert config["MetadataOptions"] == {"HttpTokens": "required"}
        profiles.add(config["IamInstanceProfile"]["Arn"])
    assert len(profiles) == 2  # what a job runs with may not start machines
