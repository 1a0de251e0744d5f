from pathlib import Path

import pytest
from tests.storage.faulty import Fault
from tests.storage.s3 import S3

from shoal.errors import StorageError
from shoal.storage.location import Location
from shoal.storage.mirror import Mirror, refuse_unwritable


@pytest.fixture
def home(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Location:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "node"))
    return s3.root / "runs" / "a b"


def test_a_copy_lies_in_the_folder_of_its_node_one_for_each_uri_and_use(home: Location, tmp_path: Path) -> None:
    one = Mirror.of(home, writes=True)
    assert one.path.is_relative_to(tmp_path / "node" / "runs")
    assert one.path.name == "a b"
    assert one == Mirror.of(home, writes=True)
    others = {Mirror.of(home, writes=False).path, Mirror.of(home.parent / "c" / "a b", writes=True).path}
    assert len(others | {one.path}) == 3
    assert not (tmp_path / "node").exists()


def test_pulled_files_are_those_at_the_uri(home: Location) -> None:
    mirror = Mirror.of(home, writes=True)
    for name, content in {"a": b"one", "deep/b": b"two", "c": b""}.items():
        (home / name).write_bytes(content)
    mirror.path.mkdir(parents=True)
    (mirror.path / "a").write_bytes(b"old")
    (mirror.path / "gone").write_bytes(b"of a run before")
    (mirror.path / "other").write_bytes(b"nobody asked")
    mirror.pull(["a", "deep/b", "c", "gone"])
    found = {str(file.relative_to(mirror.path)): file.read_bytes() for file in mirror.path.rglob("*") if file.is_file()}
    assert found == {"a": b"one", "deep/b": b"two", "c": b"", "other": b"nobody asked"}


def test_a_file_that_is_the_same_is_left_alone(home: Location) -> None:
    mirror = Mirror.of(home, writes=False)
    (home / "a").write_bytes(b"one")
    mirror.pull(["a"])
    before = (mirror.path / "a").stat().st_ino
    mirror.pull(["a"])
    assert (mirror.path / "a").stat().st_ino == before
    (home / "a").write_bytes(b"two")
    mirror.pull(["a"])
    assert (mirror.path / "a").stat().st_ino != before


def test_files_that_go_on_where_those_at_the_uri_end_are_kept_if_wanted(home: Location) -> None:
    mirror = Mirror.of(home, writes=True)
    mirror.path.mkdir(parents=True)
    for name, content in {"longer": b"one\ntwo\n", "nowhere": b"one\n", "another": b"1\n2\n", "shorter": b"o"}.items():
        (mirror.path / name).write_bytes(content)
    for name in ("longer", "another", "shorter", "new"):
        (home / name).write_bytes(b"one\n")
    mirror.pull(["longer", "nowhere", "another", "shorter", "new", "not there either"], keep_longer=True)
    found = {file.name: file.read_bytes() for file in mirror.path.iterdir()}
    assert found.pop("longer") == b"one\ntwo\n"
    assert found == dict.fromkeys(["nowhere", "another", "shorter", "new"], b"one\n")


def test_pushed_files_are_those_of_the_copy_in_their_order(home: Location, s3: S3) -> None:
    mirror = Mirror.of(home, writes=True)
    mirror.path.mkdir(parents=True)
    for name in ("a", "b", "c"):
        (mirror.path / name).write_text(name)
    mirror.push(["c", "missing", "a"])
    assert home.files() == {"a": 1, "c": 1}
    assert (home / "c").read_bytes() == b"c"
    puts = [path.partition("?")[0][-1] for method, path in s3.endpoint.requests if method == "PUT"]
    assert puts == ["c", "a"]


def test_a_copy_that_is_set_aside_keeps_its_files(home: Location) -> None:
    mirror = Mirror.of(home, writes=True)
    mirror.path.mkdir(parents=True)
    (mirror.path / "a").write_text("years of work")
    aside = mirror.set_aside()
    assert not mirror.path.exists()
    assert (aside / "a").read_text() == "years of work"
    assert aside.parent == mirror.path.parent


@pytest.mark.parametrize("method", ["PUT", "HEAD", "DELETE"])
def test_a_place_that_refuses_any_of_writing_reading_and_deleting_is_refused(
    home: Location, s3: S3, method: str
) -> None:
    refuse_unwritable(home)
    assert home.files() == {}
    body = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
    s3.endpoint.faults.append(Fault(1, method, status=403, body=body))
    with pytest.raises(StorageError, match=r"shoal-preflight-.*the store refuses it"):
        refuse_unwritable(home)
