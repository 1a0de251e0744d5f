from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoal.config import RunConfig
from shoal_ray.population.directory import SearchDirectory
from shoal_ray.population.search import bear
from shoal_ray.population.search_config import read_search

SMALL: dict[str, Any] = {
    "space": {"optim.lr": {"log_uniform": [1e-4, 1e-2]}, "nets.latent": {"ladder": [4, 8, 16]}},
    "population": 4,
    "generation_samples": 100,
    "generations": 5,
    "fitness": {"metric": "quality/mse", "mode": "min", "images": 9},
    "exploit": {"min_gap": 0, "max_share": 1.0},
}


@pytest.fixture
def make_search(tmp_path: Path, small_data: Path, tiny: Callable[..., RunConfig]) -> Callable[..., SearchDirectory]:
    """Return ``make_search(*overrides, name=…)``: a fresh search of small autoencoders, its members born."""

    def make(*overrides: str, name: str = "search") -> SearchDirectory:
        source = tmp_path / f"{name}.yaml"
        source.write_text(yaml.safe_dump({"run": tiny().model_dump(mode="json"), **SMALL}, sort_keys=False))
        directory = SearchDirectory.create(tmp_path / name, read_search(source, overrides), small_data, {"workers": 1})
        bear(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def told() -> Callable[..., dict[str, Any]]:
    """Return ``told(member, generation, mse, …)``: what a worker says of a generation, of 100 samples each."""

    def tell(
        member: int, generation: int, mse: float | None, *, lr: float = 1e-3, latent: int = 8, **others: Any
    ) -> dict[str, Any]:
        return {
            "member": member,
            "generation": generation,
            "samples": 100 * generation,
            "metrics": {} if mse is None else {"quality/mse": mse},
            "values": {"optim.lr": lr, "nets.latent": latent},
            "samples_per_sec": 50.0,
            "state": "diverged" if mse is None else "trained",
            **others,
        }

    return tell
