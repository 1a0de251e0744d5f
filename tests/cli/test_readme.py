"""The README says what works."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

Shoal = Callable[..., Any]

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", README.read_text(), re.DOTALL | re.MULTILINE)
    return [dedent(text) for _, text in found]


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text())
    assert len(links) > 6
    for link in links:
        assert (README.parent / link).exists(), link


def test_its_objective_trains(shoal: Shoal, data: Path, tiny: Sequence[str], tmp_path: Path) -> None:
    (own,) = [text for text in blocks("python") if "class Absolute" in text]
    (tmp_path / "mine.py").write_text(own)
    words = ("seed-autoencoder", "objective.name=absolute", *tiny, "--plugin", "mine.py", "--data", data, "--local")
    assert shoal("train", *words).code == 0
    assert "loss/absolute" in (tmp_path / "runs" / "seed-autoencoder" / "metrics.jsonl").read_text()


def test_its_loop_runs(
    data: Path, tiny: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (loop,) = [text for text in blocks("python") if "for tick in train" in text]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "fashion-mnist").symlink_to(data)
    exec(loop.replace('["batch=128"]', repr(list(tiny))), {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()][-1] == "320"
