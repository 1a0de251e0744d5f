import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from tests.data.encoded import encode
from tests.data.encoded import write as write_encoded
from tests.storage.faulty import Fault
from tests.storage.s3 import S3

from shoal.data import DataSet
from shoal.data.labels import write_labels
from shoal.data.shard_file import ShardFile
from shoal.data.verify import Problem, verify
from shoal.data.write import write_dataset
from shoal.errors import DataError, StorageError
from shoal.storage.location import Location
from shoal.storage.retry import Patience, patience

Damage = Callable[[Path, int], None]


def test_a_whole_data_set(path: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert verify(path, progress=lambda done, total: seen.append((done, total))) == []
    num_bytes = sum(file.stat().st_size for file in path.glob("*.arrow"))
    assert {total for _, total in seen} == {num_bytes}
    done = [done for done, _ in seen]
    assert done == sorted(set(done))
    assert done[-1] == num_bytes
    assert len(done) > 14  # not only when a shard is done


def test_progress_ends_at_the_total_whatever_is_wrong(path: Path, damage: Damage) -> None:
    (path / "shard-00000.arrow").unlink()
    damage(path / "shard-00001.arrow", 2000)
    (path / "labels.arrow").unlink()
    seen: list[tuple[int, int]] = []
    assert len(verify(path, progress=lambda done, total: seen.append((done, total)))) == 3
    assert seen[-1][0] == seen[-1][1]


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


def test_labels_of_another_size(path: Path) -> None:
    file = path / "labels.arrow"
    file.write_bytes(file.read_bytes() + b"?")
    (problem,) = verify(path)
    assert (problem.file, problem.what) == (
        "labels.arrow",
        f"has {file.stat().st_size:,} bytes where the manifest says {file.stat().st_size - 1:,}, "
        "so it was truncated or changed",
    )
    file.unlink()
    assert verify(path) == [Problem("labels.arrow", "is missing")]


def test_a_folder_in_the_place_of_a_shard(path: Path) -> None:
    (path / "shard-00000.arrow").unlink()
    (path / "shard-00000.arrow").mkdir()
    (problem,) = verify(path)
    assert (problem.file, problem.rows) == ("shard-00000.arrow", (0, 63))
    assert "is a folder" in problem.what


def test_a_file_that_gets_shorter_while_it_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it would be mapped, that would be the end of the process."""
    pieces = ShardFile.pieces

    def cut_off(self: ShardFile) -> Iterator[tuple[int | None, bytes]]:
        for index, data in pieces(self):
            yield index, data
            if self.shard.path == "shard-00001.arrow" and index == 1:
                os.truncate(path / self.shard.path, 3000)

    monkeypatch.setattr(ShardFile, "pieces", cut_off)
    (problem,) = verify(path)
    assert (problem.file, problem.rows) == ("shard-00001.arrow", (64, 127))
    assert "truncated" in problem.what


def test_damage_that_was_not_there_on_a_second_look_is_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    column = ShardFile.column
    failed: list[int] = []

    def fails_once(self: ShardFile, index: int, message: bytes) -> pa.Array:
        if not failed:
            failed.append(index)
            raise DataError("has a bit that was flipped on its way")
        return column(self, index, message)

    monkeypatch.setattr(ShardFile, "column", fails_once)
    assert verify(path) == []
    assert failed


def test_encoded_files(tmp_path: Path, damage: Damage) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 6, 8, 3), dtype=np.uint8)
    files = [encode(each) for each in pixels]
    path = write_encoded(tmp_path / "whole", files, (3, 6, 8))
    assert verify(path, decode=True) == []
    shard = path / "shard-00000.arrow"
    damage(shard, shard.read_bytes().index(files[12]) + 40)
    assert [(found.block, found.rows) for found in verify(path)] == [(1, (10, 19))]

    files[23], files[36] = b"GIF89a", encode(pixels[0, :, :4])
    path = write_encoded(tmp_path / "wrong", files, (3, 6, 8))
    assert verify(path) == []  # they are what was written
    assert list(map(str, verify(path, decode=True))) == [
        "shard-00000.arrow, block 2, row 23: the file is the one that was imported, but is not a PNG or JPEG",
        "shard-00000.arrow, block 3, row 36: the file is the one that was imported, but is 6x4 pixels where the data "
        "set has 6x8",
    ]


@pytest.fixture
def place(path: Path, s3: S3) -> Iterator[Location]:
    for file in path.iterdir():
        (s3.root / "set" / file.name).upload(file)
    with patience(Patience(total_sec=20, first_sec=0.01, most_sec=0.1, on_wait=lambda sentence: None)):
        yield s3.root / "set"


def test_on_an_object_store(place: Location, s3: S3, images: NDArray[np.uint8]) -> None:
    assert verify(place) == []
    s3.endpoint.faults = [
        Fault(2, "GET", status=500, path="shard-00000"),
        Fault(2, "GET", cut="announced", path="shard-00002"),
        Fault(2, "GET", cut="unnoticed", path="shard-00001"),
    ]
    assert verify(str(place)) == []  # what passes is no damage
    assert not any(fault.times for fault in s3.endpoint.faults)
    shards = [place / f"shard-{number:05d}.arrow" for number in range(4)]
    right = shards[2].read_bytes()
    shards[0].delete()
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    shards[2].write_bytes(right.replace(images[149].tobytes(), images[0].tobytes()))
    (place / "labels.arrow").delete()
    assert [(found.file, found.rows) for found in verify(place)] == [
        ("shard-00000.arrow", (0, 63)),
        ("shard-00001.arrow", (64, 127)),
        ("shard-00002.arrow", (144, 149)),
        ("labels.arrow", None),
    ]
    s3.endpoint.faults = [Fault(99, status=403)]
    with pytest.raises(StorageError) as caught:
        verify(place)
    assert not isinstance(caught.value, DataError)


def test_a_store_that_refuses_in_the_middle_is_no_damage(place: Location, s3: S3) -> None:
    s3.endpoint.faults = [Fault(999, "GET", status=403, path="shard-00003")]
    with pytest.raises(StorageError) as caught:
        verify(place)
    assert not isinstance(caught.value, DataError)


GROWTH = """
import os, re, sys
from pathlib import Path
from shoal.data.verify import verify
os.sched_getaffinity = lambda process: range(4)

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

seen = []
before = anonymous()
assert verify(sys.argv[1], progress=lambda done, total: seen.append(anonymous())) == []
print(max(seen) - before)
"""


def test_memory_does_not_depend_on_the_size(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4096, 3, 64, 64), dtype=np.uint8)  # 48 MiB
    write_dataset(
        tmp_path / "big",
        {"all": [(images, None)]},
        shape=(3, 64, 64),
        class_names=None,
        source="",
        shard_bytes=12 << 20,
    )
    words = [sys.executable, "-c", GROWTH, str(tmp_path / "big")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 20  # a block of 1 MiB for each of four threads, as it comes and as it is looked at


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
