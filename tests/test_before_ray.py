"""What Ray finds in the environment when it is imported."""

import os
import subprocess
import sys

import pytest

ASK = """
import os, sys
from shoal_ray import before_ray
assert "ray" not in sys.modules
before_ray.prepare(sys.argv[1] or None)
names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_gcs_rpc_server_reconnect_timeout_s")
print(*(os.environ.get(name, "-") for name in names))
"""


def prepared(address: str, **environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    said = subprocess.run(
        [sys.executable, "-c", ASK, address], env=clean | environment, capture_output=True, text=True, check=True
    )
    return said.stdout.split()


def test_a_cluster_of_our_own_gets_a_token_of_its_own() -> None:
    (mode, token, patience), (_, other, _) = prepared(""), prepared("")
    assert (mode, len(token), patience) == ("token", 64, "-")
    assert token != other


def test_a_driver_goes_on_without_the_head_of_another_cluster_for_ten_minutes() -> None:
    assert prepared("head:6379") == ["-", "-", "600"]


@pytest.mark.parametrize(
    ("address", "name", "expected"),
    [
        ("", "RAY_AUTH_MODE", ["disabled", "-", "-"]),
        ("auto", "RAY_gcs_rpc_server_reconnect_timeout_s", ["-", "-", "disabled"]),
    ],
)
def test_what_is_set_already_stays(address: str, name: str, expected: list[str]) -> None:
    assert prepared(address, **{name: "disabled"}) == expected
