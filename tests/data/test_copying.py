"""Copies of data sets: the same files, whole or not there, and nothing that is damaged is handed on."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.storage.faulty import Fault
from tests.storage.s3 import S3

from shoal.data import DataSet
from shoal.data.copying import copy
from shoal.data.verify import verify
from shoal.errors import DataError, StorageError
from shoal.storage.location import Location


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_there_and_back_again(path: Path, s3: S3, tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    home = s3.root / "data"
    manifest = copy(path, home, progress=lambda *told: done.append(told))
    assert verify(home) == []
    assert done[-1] == (sum(manifest.file_sizes().values()),) * 2
    copy(home, tmp_path / "back")
    assert files(tmp_path / "back") == files(path)


def test_from_directory_to_directory(path: Path, tmp_path: Path) -> None:
    copy(path, tmp_path / "again")
    assert files(tmp_path / "again") == files(path)


def test_what_is_there_is_never_overwritten(path: Path, s3: S3, tmp_path: Path) -> None:
    copy(path, s3.root / "data")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for dest in (s3.root / "data", tmp_path / "full"):
        with pytest.raises(DataError, match="exists already and is never overwritten"):
            copy(path, dest)
    assert (tmp_path / "full" / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["shard-00000.arrow", "labels.arrow"])
def test_damage_is_not_handed_on(
    name: str, path: Path, damage: Callable[[Path, int], None], s3: S3, tmp_path: Path
) -> None:
    damage(path / name, 500)
    for dest in (s3.root / "data", Location.parse(tmp_path / "copy")):
        with pytest.raises(DataError, match=rf"{name} has xxh3 \w+ where the manifest says \w+: it is damaged"):
            copy(path, dest)
        assert not (dest / "manifest.json").exists()
    (path / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        copy(path, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_what_a_store_cuts_short_unnoticed_is_fetched_again(path: Path, s3: S3, tmp_path: Path) -> None:
    copy(path, s3.root / "data")
    s3.endpoint.faults.append(Fault(1, "GET", cut="unnoticed", path="shard-00001.arrow"))
    copy(s3.root / "data", tmp_path / "back")
    assert files(tmp_path / "back") == files(path)


def test_a_copy_that_broke_off_is_no_data_set_and_can_be_made_again(path: Path, s3: S3) -> None:
    home = s3.root / "data"
    s3.endpoint.faults.append(Fault(99, "PUT", status=403, path="labels.arrow"))
    with pytest.raises(StorageError, match=r"labels\.arrow"):
        copy(path, home)
    with pytest.raises(DataError, match=r"manifest\.json"):
        DataSet.open(home)
    s3.endpoint.faults.clear()
    copy(path, home)
    assert verify(home) == []
