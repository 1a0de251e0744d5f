import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data.generated_source import Generated, Large, environment

from shoal.data import DataSet
from shoal.data.importers import import_data, run_import
from shoal.data.importers.partial import Command
from shoal.data.importers.reread import reread
from shoal.data.importers.splitting import Shares
from shoal.data.verify import verify
from shoal.errors import DataError

SOURCE = Generated({"train": 100, "test": 31})
SHARES = Shares({"train": 0.8, "val": 0.2})
COMMAND = Command("generated", "/somewhere", {}, {"files": 1})
SMALL: dict[str, Any] = {"rows_per_block": 4, "shard_bytes": 160}
"""Two blocks in a shard."""


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_rows_labels_and_skipped(tmp_path: Path) -> None:
    manifest, num_skipped = run_import(SOURCE, tmp_path / "set", **SMALL)
    dataset = DataSet.open(tmp_path / "set")
    assert dataset.splits == {"train": 100, "test": 31}
    for split, num in SOURCE.rows.items():
        assert np.array_equal(dataset.rows(split, 0, num), SOURCE.images(split, 0, num))
        labels = dataset.labels(split)
        assert labels is not None
        assert labels.tolist() == [i % 3 for i in range(num)]
    assert verify(tmp_path / "set") == []
    assert manifest.source == "generated"
    starts = [part.start + i for part in SOURCE.units for i in range(0, part.stop - part.start, 3)]  # type: ignore[union-attr]
    assert num_skipped == sum(start % 2 for start in starts) > 0
    assert names(tmp_path) == ["set"]


@pytest.mark.parametrize(("mixed", "encoded"), [(True, False), (False, True)])
def test_the_data_set_does_not_depend_on_the_jobs(tmp_path: Path, mixed: bool, encoded: bool) -> None:
    source = Generated(SOURCE.rows, mixed=mixed, encoded=encoded)
    made = []
    for jobs in (1, 3):
        out = tmp_path / f"{jobs}"
        _, num_skipped = run_import(source, out, jobs=jobs, split=SHARES, limit=60, command=COMMAND, **SMALL)
        made.append((num_skipped, files(out)))
    assert made[0] == made[1]


def test_divided_rows_are_all_there_in_their_order(tmp_path: Path) -> None:
    run_import(SOURCE, tmp_path / "set", split=SHARES, **SMALL)
    dataset = DataSet.open(tmp_path / "set")
    assert list(dataset.splits) == ["train", "val", "test"]
    expected = [row.tobytes() for row in SOURCE.images("train", 0, 100)]
    got = {
        split: [row.tobytes() for row in dataset.rows(split, 0, dataset.num_rows(split))] for split in ("train", "val")
    }
    assert Counter(got["train"] + got["val"]) == Counter(expected)
    assert set(got["train"]).isdisjoint(got["val"])
    for rows in got.values():
        assert rows == [row for row in expected if row in set(rows)]
    assert verify(tmp_path / "set") == []


def test_encoded_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import xxhash

    source = Generated({"train": 10}, encoded=True, labelled=False)
    manifest, _ = run_import(source, tmp_path / "set", rows_per_block=4)
    expected = [image.tobytes()[: 1 + i % 9] for i, image in enumerate(source.images("train", 0, 10))]
    assert (manifest.version, manifest.encoding, manifest.class_names) == (2, "encoded", None)
    table = pa.ipc.open_file(tmp_path / "set" / "shard-00000.arrow").read_all()
    assert table.schema == pa.schema([pa.field("image", pa.large_binary(), nullable=False)])
    assert table.column(0).to_pylist() == expected
    assert [block.rows for block in manifest.shards[0].blocks] == [4, 4, 2]
    lengths = b"".join(len(file).to_bytes(8, "little") for file in expected[4:8])
    assert manifest.shards[0].blocks[1].xxh3 == xxhash.xxh3_64_hexdigest(lengths + b"".join(expected[4:8]))


def test_encoded_shards_end_at_their_size(tmp_path: Path) -> None:
    source = Generated({"train": 90}, encoded=True)  # nine files have 45 bytes
    manifest, _ = run_import(source, tmp_path / "set", rows_per_block=9, shard_bytes=100)
    assert [shard.rows for shard in manifest.shards] == [18] * 5


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_limit_is_of_each_split(tmp_path: Path, jobs: int, mixed: bool) -> None:
    source = Generated({"train": 100, "test": 31, "val": 5}, mixed=mixed)
    run_import(source, tmp_path / "set", limit=20, jobs=jobs, **SMALL)
    dataset = DataSet.open(tmp_path / "set")
    if not mixed:
        assert dataset.splits == {"train": 20, "test": 20, "val": 5}
        assert np.array_equal(dataset.rows("test", 0, 20), source.images("test", 0, 20))
    assert max(dataset.splits.values()) == 20


def test_a_limit_leaves_units_unread(tmp_path: Path) -> None:
    source = Generated({"train": 10_000, "test": 700}, bad_at=3)  # of test nothing but bad labels
    with pytest.raises(DataError, match="split 'test': labels run from 1"):
        run_import(source, tmp_path / "set", limit=20)
    run_import(Generated({"train": 10_000}, bad_at=3), tmp_path / "set", limit=20)


def test_progress_and_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    run_import(Generated({"train": 8}), tmp_path / "one", progress=lambda *done: seen.append(done))
    assert seen == [(0, 8), (3, 8), (6, 8), (7, 8), (8, 8)]
    seen.clear()
    run_import(Generated({"train": 8}), tmp_path / "two", limit=4, progress=lambda *done: seen.append(done))
    assert seen == [(0, None), (3, None), (4, None)]


@pytest.mark.parametrize("jobs", [1, 3])
def test_what_a_source_refuses_leaves_nothing(tmp_path: Path, jobs: int) -> None:
    source = Generated(SOURCE.rows, bad_at=9)
    with pytest.raises(DataError, match=r"split 'train': labels run from 100 to 102, but 3 classes"):
        run_import(source, tmp_path / "set", jobs=jobs, command=COMMAND, **SMALL)
    assert names(tmp_path) == []


class Unknown(Generated):
    """Cannot be found by the name of its module in another process."""


def test_sources_that_other_processes_cannot_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Unknown, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "Unknown", Unknown, raising=False)
    with pytest.raises(DataError, match=r"another process cannot read this source: .*Unknown.*; define .* jobs=1"):
        run_import(Unknown(SOURCE.rows), tmp_path / "set", jobs=2)
    with pytest.raises(DataError, match=r"the source 'generated' cannot be given to other processes: .*jobs=1"):
        run_import(Generated(SOURCE.rows, tell=(lambda: None)), tmp_path / "set", jobs=2)  # type: ignore[arg-type]
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "--jobs 0 must be at least 1"),
        ({"limit": 0}, "--limit 0 must be at least 1"),
        ({"split": Shares({"train": 0.5, "test": 0.5})}, "the source has a split 'test' of its own"),
    ],
)
def test_refused_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        run_import(SOURCE, tmp_path / "set", **options)
    assert names(tmp_path) == []


def test_a_split_that_stays_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split 'val' of generated has no images"):
        run_import(SOURCE, tmp_path / "set", limit=1, split=Shares({"train": 0.999, "val": 0.001}))
    assert names(tmp_path) == []


def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    script = f"""
import re
from pathlib import Path
from shoal.data.importers import run_import
from generated_source import Large
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before = anonymous()
most = 0
def look(done, total):
    global most
    most = max(most, anonymous())
run_import(Large(300), Path({str(tmp_path / "set")!r}), jobs=2, progress=look)
print(most - before)
"""
    ended = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, timeout=120)
    assert ended.returncode == 0, ended.stderr.decode()
    assert 0 < float(ended.stdout) < 96  # 64 of rows that wait, a block, a piece, and the pickles around them


def test_readers_do_without_torch() -> None:
    code = "import sys; from shoal.data.importers import reader; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment(), timeout=60).returncode == 0


def test_the_record(tmp_path: Path) -> None:
    run_import(SOURCE, tmp_path / "set", command=COMMAND, limit=40, split=SHARES, **SMALL)
    record = json.loads((tmp_path / "set" / "import.json").read_text())
    assert record["version"] == 1
    assert record["command"] == {"kind": "generated", "src": "/somewhere", "options": {}, "identity": {"files": 1}}
    assert record["num_skipped"] > 0
    assert len(record["places"]) > 3
    assert verify(tmp_path / "set") == []


@pytest.mark.parametrize("mixed", [False, True])
def test_any_rows_can_be_read_again(tmp_path: Path, mixed: bool) -> None:
    source = Generated({"train": 100, "test": 31}, mixed=mixed)
    run_import(source, tmp_path / "set", command=COMMAND, limit=60, split=SHARES, **SMALL)
    dataset = DataSet.open(tmp_path / "set")
    places = json.loads((tmp_path / "set" / "import.json").read_text())["places"]
    for split, num in dataset.splits.items():
        for start, stop in ((0, num), (num // 2, num // 2 + 5), (num - 1, num + 9)):
            found = list(reread(source, split, start, stop, places=places, limit=60, shares=SHARES))
            images = np.concatenate([np.asarray(rows.images) for rows in found])
            assert np.array_equal(images, dataset.rows(split, start, min(stop, num)))
    read: list[Any] = []

    class Watched(Generated):
        def read(self, unit: Any) -> Any:
            read.append(unit)
            return super().read(unit)

    end = dataset.num_rows("test")
    list(reread(Watched(source.rows, mixed=mixed), "test", end - 1, end, places=places, limit=60, shares=SHARES))
    assert 0 < len(read) <= 4


def test_changed_files_are_another_identity(tmp_path: Path) -> None:
    from shoal.data.importers.record import identify

    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a-0.tar").write_bytes(b"one")
    seen = [
        identify(tmp_path / "src"),
        identify(tmp_path / "src" / "a-0.tar"),
        identify(tmp_path / "src" / "a-{0..3}.tar"),
    ]
    assert [one["files"] for one in seen] == [1, 1, 1]
    (tmp_path / "src" / "a-0.tar").write_bytes(b"other")
    seen.append(identify(tmp_path / "src"))
    os.utime(tmp_path / "src" / "a-0.tar", ns=(0, 0))
    seen.append(identify(tmp_path / "src"))
    (tmp_path / "src" / "a-1.tar").write_bytes(b"")
    seen += [identify(tmp_path / "src"), identify(tmp_path / "src" / "a-{0..3}.tar")]
    digests = [one["xxh3"] for one in seen]
    assert len({*digests}) == 4
    assert digests[0] == digests[1] == digests[2]  # the same file in a folder, by its name and by a pattern
    assert seen[-1]["files"] == 2


def test_the_same_command_again_goes_on_with_files(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3000, 200, 200), np.uint8)  # two shards
    np.savez(tmp_path / "a.npz", images=images)

    def stop(done: int, total: int | None) -> None:
        if done > 2000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_data("npz", tmp_path / "a.npz", tmp_path / "set", progress=stop)
    with pytest.raises(DataError, match=r"then limit=None; now limit=3"):
        import_data("npz", tmp_path / "a.npz", tmp_path / "set", limit=3)
    said: list[str] = []
    import_data("npz", tmp_path / "a.npz", tmp_path / "set", jobs=2, notice=said.append)
    assert "going on from the" in said[0]
    dataset = DataSet.open(tmp_path / "set")
    assert np.array_equal(dataset.rows("train", 1500, 3000)[:, 0], images[1500:])


def test_large_sources_have_that_size() -> None:
    source = Large(8)
    assert sum(len(rows) for unit in source.units for rows in source.read(unit)) == source.num_rows == 680
