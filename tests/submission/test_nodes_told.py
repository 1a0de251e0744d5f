"""What the nodes told a job that only checks."""

import json

import pytest

from shoal_ray.submission import nodes_told


def test_what_is_told_is_heard(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pythons = ["/usr/bin/python3", "/opt/a b/python"]
    monkeypatch.setenv(nodes_told.VARIABLE, nodes_told.ASK)
    nodes_told.tell(pythons)
    told = nodes_told.heard("before\n" + capsys.readouterr().out + "after\n")
    assert told == pythons
    assert nodes_told.known() == []  # by whoever is asked
    monkeypatch.setenv(nodes_told.VARIABLE, json.dumps(told))
    assert nodes_told.known() == pythons
    nodes_told.tell(pythons)
    assert capsys.readouterr().out == ""  # nobody asked


def test_nothing_is_known_where_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(nodes_told.VARIABLE, raising=False)
    assert nodes_told.known() == []
    assert nodes_told.heard("a log\nof something else\n") == []


def test_the_environment_of_a_job_keeps_the_rest() -> None:
    before = {"working_dir": "gcs://a.zip", "env_vars": {"A": "1"}}
    found = nodes_told.with_variable(before, "[]")
    assert found == {"working_dir": "gcs://a.zip", "env_vars": {"A": "1", nodes_told.VARIABLE: "[]"}}
    assert before["env_vars"] == {"A": "1"}
