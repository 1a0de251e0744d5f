import hashlib
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from tests.storage.s3 import S3

from shoal.errors import MissingError, StorageError
from shoal.storage.location import Location

BYTES = random.Random(0).randbytes(300_000)


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder of each kind."""
    if request.param == "local":
        return Location.parse(tmp_path / "root")
    s3: S3 = request.getfixturevalue("s3")
    return s3.root / "root"


def test_what_was_written_is_read(root: Location) -> None:
    file = root / "a folder/100% ünï #1+.bin"
    file.write_bytes(b"before")
    file.write_bytes(BYTES)
    assert file.size() == len(BYTES)
    assert file.read_bytes() == BYTES
    assert file.read_range(1000, 77) == BYTES[1000:1077]
    assert file.read_range(len(BYTES) - 5, 77) == BYTES[-5:]
    assert file.read_range(len(BYTES) + 5, 77) == b""
    with file.open_input() as opened:
        assert isinstance(opened, pa.NativeFile)
        assert opened.size() == len(BYTES)
        assert opened.read_at(9, 200_000) == BYTES[200_000:200_009]
        opened.seek(5)
        assert (opened.read(3), opened.tell(), opened.read()) == (BYTES[5:8], 8, BYTES[8:])


def test_an_empty_file_is_a_file(root: Location, tmp_path: Path) -> None:
    (root / "empty").write_bytes(b"")
    assert (root / "empty").read_bytes() == b""
    (tmp_path / "empty").write_bytes(b"")
    (root / "uploaded").upload(tmp_path / "empty")
    (root / "uploaded").download(tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b""
    assert root.files() == {"empty": 0, "uploaded": 0}


def test_folders_are_listed_by_name(root: Location) -> None:
    assert root.list() == []
    assert root.files() == {}
    assert not root.exists()
    for name in ("b", "a/2", "a/1/x"):
        (root / name).write_bytes(name.encode())
    assert root.list() == [root / "a", root / "b"]
    assert (root / "a").list() == [root / "a/1", root / "a/2"]
    assert root.files() == {"a/1/x": 5, "a/2": 3, "b": 1}
    assert root.exists()
    assert (root / "a").exists()
    assert (root / "a/2").exists()
    with pytest.raises(StorageError, match="is a folder"):
        (root / "a").size()


def test_a_folder_is_deleted_with_what_is_in_it(root: Location) -> None:
    for name in ("b", "a/2", "a/1/x"):
        (root / name).write_bytes(b".")
    (root / "a").delete()
    (root / "none").delete()
    assert root.files() == {"b": 1}
    (root / "b").delete()
    assert root.files() == {}


def test_files_go_up_and_down_bit_for_bit(root: Location, tmp_path: Path) -> None:
    # More than one part of a multi-part upload, and more than one request of a download.
    source, target = tmp_path / "source", tmp_path / "new/target"
    source.write_bytes(random.Random(1).randbytes((33 << 20) + 17))
    (root / "file").upload(source)
    (root / "file").download(target)
    digests = [hashlib.blake2b(path.read_bytes()).digest() for path in (source, target)]
    assert digests[0] == digests[1]
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_what_is_missing_is_said_to_be(root: Location, tmp_path: Path) -> None:
    file = root / "none"
    assert not file.exists()
    for ask in (file.size, file.read_bytes, file.open_input, lambda: file.download(tmp_path / "x")):
        with pytest.raises(MissingError, match=r"none.*: no such (file|object); check the path"):
            ask()
    with pytest.raises(MissingError, match="no-source"):
        file.upload(tmp_path / "no-source")
    assert not (tmp_path / "x").exists()
    assert not file.exists()


def test_a_local_file_is_replaced_whole(tmp_path: Path) -> None:
    file = Location.parse(tmp_path / "file")
    file.write_bytes(b"before")
    with (tmp_path / "file").open("rb") as opened:
        file.write_bytes(b"after, and longer")
        assert opened.read() == b"before"  # the old file, not the new one in its place
    assert file.read_bytes() == b"after, and longer"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_local_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"file.*: (Not a directory|File exists); check the path and its disk"):
        Location.parse(tmp_path / "file/below").write_bytes(b"")


def test_a_bucket_is_not_deleted(s3: S3) -> None:
    with pytest.raises(StorageError, match="a whole bucket is not deleted"):
        s3.root.delete()


USE = """
import os, sys
from shoal.storage.location import Location
place = Location.parse(sys.argv[1])
place.write_bytes(b"parent")
assert place.read_bytes() == b"parent"
opened = place.open_input()
child = os.fork()
if child == 0:
    place.write_bytes(b"child")
    os._exit(0 if place.read_bytes() == b"child" else 1)
assert os.waitpid(child, 0)[1] == 0
assert place.read_bytes() == b"child"
"""


def test_a_process_that_used_s3_ends_without_a_word_and_so_does_its_fork(s3: S3) -> None:
    done = subprocess.run(
        [sys.executable, "-c", USE, str(s3.root / "file")], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_naming_a_place_does_not_import_pyarrow() -> None:
    code = "import sys, shoal.storage.location as it; it.Location.parse('s3://b'); print('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
