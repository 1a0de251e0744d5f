"""The Dockerfile brings what the build reads and nothing else, and what runs in the image is nobody."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "distributed/shoal_ray/launch/Dockerfile"


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def needed(project: dict[str, Any]) -> set[str]:
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    found = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    return found | {package.split("/")[0] for package in packages}


def test_copies_what_the_build_reads(instructions: list[tuple[str, str]], project: dict[str, Any]) -> None:
    copied: set[str] = set()
    for name, words in instructions:
        if name == "COPY" and not words.startswith("--from="):
            copied |= set(words.split()[:-1])
    assert copied == needed(project)


def test_no_more_than_that_travels(project: dict[str, Any]) -> None:
    lines = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == needed(project)


def test_ends_as_the_user_that_the_manifests_name(instructions: list[tuple[str, str]]) -> None:
    users = [words for name, words in instructions if name == "USER"]
    assert users == ["1000:1000"]
    assert [name for name, _ in instructions].index("USER") > max(
        index for index, (name, _) in enumerate(instructions) if name in ("RUN", "COPY")
    )


def test_holds_no_secret(instructions: list[tuple[str, str]]) -> None:
    told = " ".join(words for name, words in instructions if name in ("ENV", "ARG"))
    assert not re.search(r"TOKEN|SECRET|PASSW|KEY", told)


def test_runs_on_a_python_of_pyproject(instructions: list[tuple[str, str]], project: dict[str, Any]) -> None:
    from packaging.specifiers import SpecifierSet

    [base] = [words for name, words in instructions if name == "ARG"]
    version = re.fullmatch(r"BASE=python:(\d+\.\d+\.\d+)-slim-bookworm", base)  # a shorter tag means another one soon
    assert version is not None
    assert SpecifierSet(project["project"]["requires-python"]).contains(version[1])


def test_what_reads_this_file_is_named_exactly() -> None:
    assert re.match(r"# syntax=docker/dockerfile:\d+\.\d+\.\d+\n", DOCKERFILE.read_text())
