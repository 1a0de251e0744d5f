"""Damaged data sets are mended from copies and sources, and by nothing else."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from numpy.typing import NDArray
from tests.data.encoded import encode
from tests.data.encoded import write as write_encoded
from tests.data.generated_source import Generated
from tests.storage.s3 import S3

from shoal.data import DataSet, load_manifest
from shoal.data.importers import IMPORTERS, Source, import_data, run_import
from shoal.data.importers.partial import Command
from shoal.data.importers.record import identify, read_record
from shoal.data.importers.splitting import Shares
from shoal.data.repair import Repair, repair
from shoal.data.shard import shard_schema
from shoal.data.verify import verify
from shoal.data.write import write_dataset
from shoal.errors import DamagedBlockError, DataError, StorageError
from shoal.storage.cache import BlockCache
from shoal.storage.location import Location
from shoal.storage.retry import Patience, patience

Damage = Callable[[Path, int], None]
Make = Callable[[str], Path]

SHARDS = [f"shard-{number:05d}.arrow" for number in range(4)]


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file, hidden ones and those of subfolders included."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def offset(folder: Path, shard: str, row: NDArray[np.uint8]) -> int:
    """Return where a row's pixels lie in a shard."""
    return (folder / shard).read_bytes().index(row.tobytes())


@pytest.fixture
def copy(path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(path, tmp_path / "copy"))


def test_nothing_to_mend(path: Path, copy: Path) -> None:
    before = files(path)
    seen: list[tuple[int, int]] = []
    assert repair(path, progress=lambda done, total: seen.append((done, total))) == Repair()  # no source is missed
    assert repair(path, copy) == Repair()
    assert files(path) == before
    num_bytes = sum(len(content) for name, content in before.items() if name.endswith(".arrow"))
    assert seen[-1] == (num_bytes, num_bytes)


def test_everything_from_a_copy(path: Path, copy: Path, images: NDArray[np.uint8], damage: Damage) -> None:
    whole = files(path)
    damage(path / SHARDS[0], offset(path, SHARDS[0], images[20]))
    damage(path / SHARDS[0], offset(path, SHARDS[0], images[50]))
    os.truncate(path / SHARDS[1], 1000)
    (path / SHARDS[2]).unlink()
    damage(path / "labels.arrow", 500)
    assert repair(path, copy) == Repair(
        mended={
            SHARDS[0]: f"2 of its 4 blocks had again from {copy}",
            SHARDS[1]: f"copied from {copy}",
            SHARDS[2]: f"copied from {copy}",
            "labels.arrow": f"had again from {copy}",
        }
    )
    assert files(path) == whole
    assert verify(path) == []


def test_a_shard_whose_blocks_are_right_needs_no_source(path: Path, damage: Damage) -> None:
    whole = files(path)
    damage(path / SHARDS[1], 6)  # padding after the magic
    assert repair(path) == Repair(mended={SHARDS[1]: "written again from its own blocks, which are right"})
    assert files(path) == whole


def test_what_is_right_of_two_damaged_copies_makes_a_whole_one(
    path: Path, copy: Path, images: NDArray[np.uint8], damage: Damage
) -> None:
    whole = files(path)
    for row in (0, 70):
        damage(path / SHARDS[row // 64], offset(path, SHARDS[row // 64], images[row]))
    damage(copy / SHARDS[0], offset(copy, SHARDS[0], images[63]))
    damage(copy / SHARDS[1], offset(copy, SHARDS[1], images[64]))  # in the same block as row 70
    before = (path / SHARDS[1]).read_bytes()
    done = repair(path, copy)
    assert done.mended == {SHARDS[0]: f"1 of its 4 blocks had again from {copy}"}
    assert list(done.left) == [SHARDS[1]]
    assert done.left[SHARDS[1]].startswith(f"the copy is damaged too: {copy / SHARDS[1]} has xxh3 ")
    assert (path / SHARDS[0]).read_bytes() == whole[SHARDS[0]]
    assert (path / SHARDS[1]).read_bytes() == before


def test_a_copied_shard_that_is_wrong_is_not_used(path: Path, copy: Path, damage: Damage) -> None:
    (path / SHARDS[3]).unlink()
    damage(copy / SHARDS[3], 2000)
    done = repair(path, copy)
    assert not done.mended
    assert "the copy is damaged too" in done.left[SHARDS[3]]
    assert not (path / SHARDS[3]).exists()
    assert sorted(file.name for file in path.iterdir()) == ["labels.arrow", "manifest.json", *SHARDS[:3]]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("set", "set is the damaged data set itself"),
        ("other", r"other is another data set \(fingerprint [0-9a-f]{12}…, and not [0-9a-f]{12}…\)"),
        ("absent", r"does not say how it was imported from 'test'.* give --from a copy"),
    ],
)
def test_refused_sources(path: Path, tmp_path: Path, images: NDArray[np.uint8], source: str, message: str) -> None:
    write_dataset(tmp_path / "other", {"train": [(images, None)]}, shape=(3, 4, 5), class_names=None, source="test")
    (path / SHARDS[0]).unlink()
    before = files(path)
    with pytest.raises(DataError, match=message):
        repair(path, tmp_path / source)
    assert files(path) == before


def test_who_reads_meanwhile_goes_on(path: Path, copy: Path, images: NDArray[np.uint8], damage: Damage) -> None:
    damage(path / SHARDS[0], offset(path, SHARDS[0], images[20]))
    reader = DataSet.open(path)
    before = reader.fetch(np.arange(16))
    with pytest.raises(DamagedBlockError):
        reader.fetch(np.arange(32))
    repair(path, copy)
    assert np.array_equal(reader.fetch(np.arange(200)), images)
    assert np.array_equal(before, images[:16])


def test_a_manifest_comes_from_a_copy_only(path: Path, copy: Path, make: Make, damage: Damage) -> None:
    whole = files(path)
    damage(path / "manifest.json", 5)
    (path / SHARDS[2]).unlink()
    before = files(path)
    with pytest.raises(DataError, match=r"is not a manifest that shoal wrote.* repair it --from a copy"):
        repair(path)
    assert files(path) == before
    assert list(repair(path, copy).mended) == [SHARDS[2], "manifest.json"]
    assert files(path) == whole


def test_a_manifest_of_other_data_is_not_taken(path: Path, tmp_path: Path, images: NDArray[np.uint8]) -> None:
    others = images[::-1].copy()
    splits = {"train": [(others[:150], None)], "test": [(others[150:], None)]}
    options: dict[str, Any] = {"rows_per_block": 16, "shard_bytes": 4 * 16 * 60}
    write_dataset(tmp_path / "other", splits, shape=(3, 4, 5), class_names=None, source="test", **options)
    (path / "manifest.json").unlink()
    before = files(path)
    with pytest.raises(DataError, match=r"no shard of .* is one of .*other, so its manifest cannot come from there"):
        repair(path, tmp_path / "other")
    assert files(path) == before


def test_shards_of_another_layout(path: Path, copy: Path, images: NDArray[np.uint8], damage: Damage) -> None:
    """As another Arrow may write them: the data set is the same, and its manifest follows."""
    fingerprint = load_manifest(path).fingerprint
    document = json.loads((path / "manifest.json").read_text())
    for shard in document["shards"]:
        table = pa.ipc.open_file(str(path / shard["path"]))
        batches = [table.get_batch(index) for index in range(table.num_record_batches)]
        schema = shard_schema(60).with_metadata({"written by": "another Arrow"})
        with pa.ipc.new_file(str(path / shard["path"]), schema) as writer:
            for batch in batches:
                writer.write_batch(batch.replace_schema_metadata(schema.metadata))
        content = (path / shard["path"]).read_bytes()
        shard.update(bytes=len(content), xxh3=xxhash.xxh3_64_hexdigest(content))
    (path / "manifest.json").write_text(json.dumps(document))
    assert verify(path) == []
    damage(path / SHARDS[0], offset(path, SHARDS[0], images[3]))
    (path / SHARDS[3]).unlink()
    untouched = (path / SHARDS[1]).read_bytes()
    assert set(repair(path, copy).mended) == {SHARDS[0], SHARDS[3]}
    assert verify(path) == []
    assert load_manifest(path).fingerprint == fingerprint
    assert (path / SHARDS[3]).read_bytes() == (copy / SHARDS[3]).read_bytes()
    assert (path / SHARDS[1]).read_bytes() == untouched
    assert np.array_equal(DataSet.open(path).fetch(np.arange(200)), images)


def test_an_encoded_data_set(tmp_path: Path, damage: Damage) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 6, 8, 3), dtype=np.uint8)
    path = write_encoded(tmp_path / "encoded", [encode(each) for each in pixels], (3, 6, 8))
    copy = Path(shutil.copytree(path, tmp_path / "copy"))
    whole = files(path)
    damage(path / SHARDS[0], len(whole[SHARDS[0]]) // 2)
    assert repair(path, copy).mended == {SHARDS[0]: f"1 of its 4 blocks had again from {copy}"}
    assert files(path) == whole
    (path / SHARDS[0]).unlink()
    assert repair(path, copy).mended == {SHARDS[0]: f"copied from {copy}"}
    assert files(path) == whole


# --- killed -----------------------------------------------------------------------------------------------------------


def test_killed_at_any_instant(path: Path, copy: Path, images: NDArray[np.uint8], damage: Damage) -> None:
    damage(path / SHARDS[0], offset(path, SHARDS[0], images[20]))
    (path / SHARDS[2]).unlink()
    (path / "labels.arrow").unlink()
    script = Path(__file__).with_name("killed_repairs.py")
    done = subprocess.run(
        [sys.executable, str(script), str(path), str(copy)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


# --- from what was imported -------------------------------------------------------------------------------------------

SHARES = Shares({"train": 0.8, "val": 0.2})
ROWS = {"train": 100, "test": 31}


@pytest.fixture
def read_units(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let ``generated`` be an importer, and collect the units that are read."""
    read: list[Any] = []

    class Watched(Generated):
        def read(self, unit: Any) -> Any:
            read.append(unit)
            return super().read(unit)

    def opened(src: Path, *, encoded: bool = False, shape: tuple[int, ...] | None = None, unit_rows: int = 7) -> Source:
        assert shape in (None, (1, 4, 5))  # a tuple again, though JSON has none
        train, test = map(int, (src / "rows").read_text().split())
        return Watched({"train": train, "test": test}, encoded=encoded, unit_rows=unit_rows)

    monkeypatch.setitem(IMPORTERS, "generated", opened)
    return read


@pytest.fixture
def src(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "rows").write_text("100 31")
    return tmp_path / "src"


def imported(src: Path, out: Path, encoded: bool = False) -> Path:
    options = {"encoded": encoded, "shape": (1, 4, 5), "limit": 60, "split": SHARES.by_name}
    run_import(
        Generated(ROWS, encoded=encoded),
        out,
        limit=60,
        split=SHARES,
        command=Command("generated", str(src), options, identify(src)),
        rows_per_block=4,
        shard_bytes=160,  # two blocks
    )
    return out


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("moved", [False, True])
def test_every_file_from_the_source(
    tmp_path: Path, src: Path, read_units: list[Any], encoded: bool, moved: bool
) -> None:
    path = imported(src, tmp_path / "set", encoded)
    whole = files(path)
    place = src.rename(tmp_path / "moved") if moved else src
    for name in [*(shard.path for shard in load_manifest(path).shards), "labels.arrow"]:
        (path / name).unlink()
        assert list(repair(path, place if moved else None).mended) == [name]
        assert files(path) == whole
    assert read_units


def test_only_the_units_of_damaged_blocks_are_read(
    tmp_path: Path, src: Path, read_units: list[Any], damage: Damage
) -> None:
    path = imported(src, tmp_path / "set")
    whole = files(path)
    manifest = load_manifest(path)
    shard = manifest.shards[-1]
    assert shard.split == "test"
    damage(path / shard.path, offset(path, shard.path, DataSet.open(path).rows("test", 30, 31)))
    done = repair(path)
    assert done.mended == {shard.path: f"1 of its {len(shard.blocks)} blocks had again from {src}"}
    assert files(path) == whole
    assert 0 < len(read_units) <= 3
    assert {unit.split for unit in read_units} == {"test"}


def test_a_source_that_has_changed_is_refused(tmp_path: Path, src: Path, read_units: list[Any], damage: Damage) -> None:
    path = imported(src, tmp_path / "set")
    names = [shard.path for shard in load_manifest(path).shards]
    row = DataSet.open(path).rows("train", 0, 1)
    damage(path / names[0], offset(path, names[0], row))
    row = DataSet.open(path).rows("test", 30, 31)
    damage(path / names[-1], offset(path, names[-1], row))
    (path / "labels.arrow").unlink()
    (src / "rows").write_text("100 30")  # other images of test, and fewer; those of train stay
    before = files(path)
    done = repair(path)
    assert list(done.mended) == [names[0]]
    for name, what in ((names[-1], "rows"), ("labels.arrow", "labels")):
        assert f"{src} does not give the {what} that were imported (" in done.left[name]
        assert "its files are not those that were imported; nothing of it was used" in done.left[name]
    assert before.pop(names[0]) != (after := files(path)).pop(names[0])
    assert after == before


def test_a_source_of_other_images(tmp_path: Path, src: Path, read_units: list[Any]) -> None:
    path = imported(src, tmp_path / "set")
    record = json.loads((path / "import.json").read_text())
    record.pop("xxh3")
    record["command"]["options"]["encoded"] = True
    _write_record(path, record)
    next(path.glob("*.arrow")).unlink()
    with pytest.raises(DataError, match=r"holds encoded images of \[1, 4, 5\], and .*set raw ones of \[1, 4, 5\]"):
        repair(path, src)


def _write_record(path: Path, record: dict[str, Any]) -> None:
    digest = xxhash.xxh3_64_hexdigest(json.dumps(record, indent=1).encode())
    (path / "import.json").write_text(json.dumps({**record, "xxh3": digest}, indent=1) + "\n")
    assert read_record(Location.parse(path)) == record


def test_a_source_that_is_gone(tmp_path: Path, src: Path, read_units: list[Any]) -> None:
    path = imported(src, tmp_path / "set")
    next(path.glob("shard*")).unlink()
    shutil.rmtree(src)
    (why,) = repair(path).left.values()
    assert why == f"{src}, which {path} was imported from, is not there; give --from SRC"


def test_what_was_imported_before_there_were_records(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images[:30], x_test=images[30:], y_train=np.arange(30), y_test=np.arange(10))
    path = tmp_path / "set"
    import_data("npz", tmp_path / "a.npz", path)
    whole = files(path)
    whole.pop("import.json")
    (path / "import.json").unlink()
    (path / SHARDS[0]).unlink()
    assert repair(path, tmp_path / "a.npz").mended == {
        SHARDS[0]: f"1 of its 1 blocks had again from {tmp_path / 'a.npz'}"
    }
    assert files(path) == whole


def test_the_record_of_the_import(tmp_path: Path, src: Path, read_units: list[Any], damage: Damage) -> None:
    path = imported(src, tmp_path / "set")
    copy = Path(shutil.copytree(path, tmp_path / "copy"))
    whole = files(path)
    manifest = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(manifest.replace('"source":"generated"', '"source":"generatee"'))
    assert repair(path) == Repair(mended={"manifest.json": "names the source 'generated' again"})
    assert files(path) == whole
    damage(path / "import.json", whole["import.json"].index(b'"num_skipped": ') + 16)
    assert "so it was changed after the import" in repair(path).left["import.json"]
    assert repair(path, copy) == Repair(mended={"import.json": f"copied from {copy}"})
    assert files(path) == whole


# --- on an object store -----------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> BlockCache:
    return BlockCache(tmp_path / "cache", 1 << 30)


@pytest.fixture
def little_patience() -> Any:
    with patience(Patience(total_sec=20, first_sec=0.01, most_sec=0.1, on_wait=lambda sentence: None)):
        yield


def put(s3: S3, folder: Path) -> Location:
    for file in folder.iterdir():
        (s3.root / folder.name / file.name).upload(file)
    return s3.root / folder.name


@pytest.mark.usefixtures("little_patience")
def test_from_an_object_store_and_there(
    path: Path, copy: Path, s3: S3, cache: BlockCache, images: NDArray[np.uint8], damage: Damage
) -> None:
    place, whole = put(s3, copy), files(path)
    damage(path / SHARDS[0], offset(path, SHARDS[0], images[20]))
    s3.endpoint.requests.clear()
    assert repair(path, place).mended == {SHARDS[0]: f"1 of its 4 blocks had again from {place}"}
    assert files(path) == whole
    read = [name for method, name in s3.endpoint.requests if method == "GET" and "shard" in name]
    assert len(read) == 2, read  # where its blocks are, and the one block
    (path / SHARDS[1]).unlink()
    assert repair(path, place).mended == {SHARDS[1]: f"copied from {place}"}

    (place / SHARDS[3]).delete()
    (place / SHARDS[0]).write_bytes(whole[SHARDS[0]].replace(images[20].tobytes(), images[21].tobytes()))
    (place / "labels.arrow").write_bytes(bytes(len(whole["labels.arrow"])))
    reader = DataSet.open(place, cache)
    with pytest.raises(DamagedBlockError):
        reader.fetch(np.arange(32))
    assert list(repair(place, path).mended) == [SHARDS[0], SHARDS[3], "labels.arrow"]
    assert verify(place) == []
    assert np.array_equal(reader.fetch(np.arange(200)), images)
    assert place.files() == {name: len(content) for name, content in whole.items()}


@pytest.mark.usefixtures("little_patience")
def test_only_a_copy_may_lie_on_an_object_store(path: Path, s3: S3) -> None:
    (path / SHARDS[0]).unlink()
    (s3.root / "images" / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"has no manifest.json, so it is no copy of"):
        repair(path, s3.root / "images")
    s3.endpoint.away()
    with patience(Patience(total_sec=0.1, on_wait=lambda sentence: None)), pytest.raises(StorageError):
        repair(path, s3.root / "images")
    s3.endpoint.back()
