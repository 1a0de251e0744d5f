import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shoal.data import DataSet
from shoal.data.labels import write_labels
from shoal.data.verify import Problem, verify
from shoal.errors import DataError

Damage = Callable[[Path, int], None]


def test_a_whole_data_set(path: Path) -> None:
    seen: list[int] = []
    assert verify(path, progress=seen.append) == []
    assert seen == [64, 128, 150, 200]


def test_all_damage_is_listed(path: Path, damage: Damage) -> None:
    dataset = DataSet.open(path)
    row = (path / "shard-00000.arrow").read_bytes().index(dataset.rows("train", 20, 21).tobytes())
    damage(path / "shard-00000.arrow", row)
    row = (path / "shard-00000.arrow").read_bytes().index(dataset.rows("train", 63, 64).tobytes())
    damage(path / "shard-00000.arrow", row + 59)
    truncated = path / "shard-00001.arrow"
    truncated.write_bytes(truncated.read_bytes()[:1000])
    (path / "shard-00002.arrow").unlink()
    damage(path / "labels.arrow", 500)
    problems = verify(path)
    assert [(p.file, p.block, p.rows) for p in problems] == [
        ("shard-00000.arrow", 1, (16, 31)),
        ("shard-00000.arrow", 3, (48, 63)),
        ("shard-00001.arrow", None, (64, 127)),
        ("shard-00002.arrow", None, (128, 149)),
        ("labels.arrow", None, None),
    ]
    assert str(problems[0]).startswith("shard-00000.arrow, block 1, rows 16 to 31: has xxh3 ")
    assert "truncated" in problems[2].what
    assert problems[3].what == "is missing"
    assert "labels were changed" in problems[4].what


def test_a_byte_between_the_blocks(path: Path, damage: Damage) -> None:
    file = path / "shard-00000.arrow"
    damage(file, file.read_bytes().index(b"ARROW1") + 6)  # padding after the magic
    assert verify(path) == [Problem(file.name, "the rows are right, but bytes between the blocks were changed")]


def test_a_shard_that_is_not_arrow(path: Path) -> None:
    shard = path / "shard-00000.arrow"
    shard.write_bytes(b"?" * shard.stat().st_size)
    (problem,) = verify(path)
    assert problem.rows == (0, 63)
    assert "not readable as an Arrow file" in problem.what


def test_a_changed_manifest(path: Path) -> None:
    file = path / "manifest.json"
    document = json.loads(file.read_text())
    document["shards"][1]["blocks"][2]["classes"] = {"0": 16}
    file.write_text(json.dumps(document))
    fingerprint, labels = verify(path)
    assert "the manifest was changed after the import" in fingerprint.what
    assert (labels.file, labels.block, labels.rows) == ("labels.arrow", 6, (96, 111))


def test_labels_of_other_rows(path: Path) -> None:
    entry = write_labels(path, np.zeros(200, np.int32))
    file = path / "manifest.json"
    document = json.loads(file.read_text())
    document["labels"].update(bytes=entry.bytes, xxh3=entry.xxh3)
    file.write_text(json.dumps(document))
    (problem,) = verify(path)
    assert "its 200 labels are not the 200 that the manifest lists" in problem.what


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest\.json"):
        verify(tmp_path)


def test_every_bit_of_a_shard_is_covered(path: Path, damage: Damage) -> None:
    file = path / "shard-00003.arrow"
    for offset in range(0, file.stat().st_size, 37):
        damage(file, offset)
        assert verify(path), offset
        damage(file, offset)
    assert verify(path) == []
