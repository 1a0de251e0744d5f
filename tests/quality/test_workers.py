"""Real gloo worlds of one and of three ranks: the same measures on every rank, whatever their number."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal.data import DataSet
from shoal.quality.extractor import Extractor
from shoal.quality.store import keep

SCRIPT = Path(__file__).with_name("workers.py")

Told = dict[str, Any]


@pytest.fixture(scope="module")
def told(
    corner_data: DataSet,
    classifier: Extractor,
    tmp_path_factory: pytest.TempPathFactory,
    launch_world: Callable[..., list[str]],
) -> dict[int, list[Told]]:
    """Return what every rank found, by the size of the world."""
    folder = tmp_path_factory.mktemp("workers")
    data = DataSet.open(shutil.copytree(corner_data.path, folder / "data"))
    keep(classifier, data)
    damaged = Path(shutil.copytree(data.path, folder / "damaged"))
    test = bytearray((damaged / "shard-00001.arrow").read_bytes())
    at = bytes(test).index(data.rows("test", 20, 21).tobytes())
    test[at] ^= 1
    (damaged / "shard-00001.arrow").write_bytes(test)
    found = {}
    for size in (1, 3):
        out = folder / str(size)
        out.mkdir()
        launch_world(size, SCRIPT, data.path, out)
        found[size] = [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(size)]
    return found


@pytest.mark.parametrize("family", ["vae", "painter"])
@pytest.mark.parametrize("kind", ["all", "few"])
def test_evaluations_agree(family: str, kind: str, told: dict[int, list[Told]]) -> None:
    alone = told[1][0][family][kind]
    assert len(alone["metrics"]) > 3
    for rank in told[3]:
        found = rank[family][kind]
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            if name in ("details", "per_class"):
                assert found[name].keys() == value.keys()
                for part, values in value.items():
                    assert found[name][part] == pytest.approx(values, rel=1e-9, abs=1e-12), part
            elif name == "metrics":
                assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12)
            else:
                assert found[name] == value


@pytest.mark.parametrize("family", ["vae", "painter"])
def test_monitors_agree(family: str, told: dict[int, list[Told]]) -> None:
    first, second = told[1][0][family]["monitor"]
    assert first == second
    assert first
    for rank in told[3]:
        for found in rank[family]["monitor"]:
            assert found == pytest.approx(first, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("family", ["vae", "painter"])
@pytest.mark.parametrize("by", ["evaluate", "monitor"])
def test_damage_that_one_rank_meets_is_told_to_all(
    size: int, family: str, by: str, told: dict[int, list[Told]]
) -> None:
    for rank in told[size]:
        assert rank[family][f"{by}, damaged"].startswith("DamagedBlockError: ")
        assert "block 1 of" in rank[family][f"{by}, damaged"]
