"""``shoal tune`` and ``shoal lineage``: what is refused, before anything is written or Ray is started."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

SEARCH = {
    "run": "seed-autoencoder",
    "set": {"batch": 20, "nets.hidden": [16]},
    "space": {"optim.lr": {"log_uniform": [1e-4, 1e-2]}, "nets.latent": {"ladder": [2, 4]}},
    "population": 3,
    "generation_samples": 200,
    "generations": 2,
    "fitness": {"metric": "quality/mse", "mode": "min", "price": {"nets.latent": 1e-4}, "images": 5},
}

Shoal = Callable[..., Any]


@pytest.fixture
def search(tmp_path: Path) -> Path:
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(SEARCH))
    return path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fitness.metric=quality/msee"], ["quality/msee", "did you mean 'quality/mse'"]),
        (["fitness.metric=loss/nothing"], ["loss/nothing", "loss/reconstruction"]),
        (["space.nets.latent.ladder=[4, 2]"], ["space.nets.latent", "does not ascend"]),
        (["space.optim.lr.log_uniform=[1e-2, 1e-4]"], ["space.optim.lr", "0.01"]),
        (["space.optim.lrr={uniform: [0, 1]}"], ["space.optim.lrr", "did you mean 'optim.lr'"]),
        (["space.nets.hidden={choice: [[8], [16]]}", "set={batch: 20}"], ["nets.hidden", "only nets.latent"]),
        (["generation_samples=10"], ["generation_samples", "batch"]),
        (["algorithm=pbtt"], ["algorithm", "pbtt"]),
        (["population=1"], ["population"]),
        (["--data", "nowhere"], ["nowhere"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and "=" in str(value[0]) else None,
)
def test_what_cannot_be_searched_is_refused(
    shoal: Shoal, search: Path, small_data: Path, tmp_path: Path, words: list[str], said: list[str]
) -> None:
    given = words if "--data" in words else ["--data", small_data, *words]
    found = shoal("tune", search, "--out", tmp_path / "out", *given)
    assert found.code == 2, found
    for word in said:
        assert word in found.error
    assert not (tmp_path / "out").exists()


def test_a_search_or_its_directory_that_is_not_there(shoal: Shoal, small_data: Path, tmp_path: Path) -> None:
    for words, said in [
        (("tune", "--data", small_data), "no SEARCH given"),
        (("tune", "nothing", "--data", small_data), "nothing"),
        (("tune", "--resume", "--out", tmp_path), "not the directory of a search"),
        (("lineage", tmp_path), "not the directory of a search"),
    ]:
        found = shoal(*words)
        assert found.code == 2, found
        assert said in found.error


def test_nothing_is_overwritten(shoal: Shoal, search: Path, small_data: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    found = shoal("tune", search, "--data", small_data, "--out", taken)
    assert found.code == 2
    assert "exists and is not a search" in found.error
