"""A file of records on storage that refuses them: what is in it at any moment, and in the end."""

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.errors import FencedError
from shoal.growing_file import GrowingFile

Write = Callable[[int, bytes, int], int]


class Storage:
    """os.pwrite and os.fsync of a disk that takes so many bytes and then refuses, until it takes more."""

    def __init__(self) -> None:
        self.room = 0
        self.pwrite, self.fsync = os.pwrite, os.fsync

    def write(self, handle: int, data: bytes, offset: int) -> int:
        if self.room <= 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        part = data[: self.room]
        self.room -= len(part)
        return self.pwrite(handle, part, offset)

    def sync(self, handle: int) -> None:
        if self.room <= 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.fsync(handle)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(story=st.lists(st.tuples(st.binary(max_size=12), st.integers(0, 30)), max_size=12))
def test_whatever_is_refused_and_when_all_records_come_in_their_order(
    story: list[tuple[bytes, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b"head")
    storage = Storage()
    with monkeypatch.context() as patch, GrowingFile(path, durable=True) as file:
        patch.setattr(os, "pwrite", storage.write)
        patch.setattr(os, "fsync", storage.sync)
        expected = b"head"
        for record, room in story:
            storage.room = room
            file.write(record)
            expected += record
            with suppress(OSError):
                file.flush()
            assert expected.startswith(path.read_bytes())  # no byte of another record, and none out of its place
            assert file.waits or path.read_bytes() == expected
        storage.room = 1000
        file.flush()
    assert path.read_bytes() == expected


def refused(room: list[bool]) -> Write:
    write = os.pwrite

    def once(handle: int, data: bytes, offset: int) -> int:
        if not room:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return write(handle, data, offset)

    return once


def test_after_an_error_the_file_is_opened_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows"
    path.touch()
    room: list[bool] = []
    monkeypatch.setattr(os, "pwrite", refused(room))
    with GrowingFile(path, durable=True) as file:
        file.write(b"one\n")
        with pytest.raises(OSError, match="Stale file handle"):
            file.flush()
        room.append(True)
        path.rename(tmp_path / "elsewhere")
        with pytest.raises(FileNotFoundError, match=str(path)):
            file.flush()
        (tmp_path / "elsewhere").rename(path)
        file.flush()
        file.write(b"two\n")
        file.flush()
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_file_that_has_another_number_after_its_disk_was_away_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, room = tmp_path / "rows", list[bool]()
    path.write_bytes(b"head\n")
    with GrowingFile(path, durable=True) as file:
        for record in (b"one\n", b"two\n"):
            file.write(record)
            with monkeypatch.context() as patch:
                patch.setattr(os, "pwrite", refused(room))
                with pytest.raises(OSError, match="Stale file handle"):
                    file.flush()
            shutil.copy(path, tmp_path / "mounted anew")
            (tmp_path / "mounted anew").replace(path)
            with path.open("ab") as half:
                half.write(record[:2])  # what was written of it before it was refused
            file.flush()
    assert path.read_bytes() == b"head\none\ntwo\n"


def test_a_file_of_somebody_else_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, room = tmp_path / "rows", list[bool]()
    path.write_bytes(b"head\n")
    with GrowingFile(path, durable=True) as file:
        file.write(b"one\n")
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", refused(room))
            with pytest.raises(OSError, match="Stale file handle"):
                file.flush()
        (tmp_path / "other").write_bytes(b"HEAD\nof another\n")
        (tmp_path / "other").replace(path)
        with pytest.raises(OSError, match="another file has taken its place"):
            file.flush()
    assert path.read_bytes() == b"HEAD\nof another\n"


def test_a_file_that_took_its_place_is_not_written_to_by_who_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.touch()

    def lost() -> None:
        raise FencedError("it is trained by another process")

    with GrowingFile(path, durable=True, check=lost) as file:
        file.write(b"one\n")
        file.flush()
        (tmp_path / "new").write_bytes(b"of the next owner\n")
        (tmp_path / "new").replace(path)
        file.write(b"two\n")
        with pytest.raises(FencedError):
            file.flush()
    assert path.read_bytes() == b"of the next owner\n"


@pytest.mark.parametrize("deleted", [False, True])
def test_a_file_that_was_replaced_by_who_was_cut_off_is_put_back(tmp_path: Path, deleted: bool) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b"head\n")
    with GrowingFile(path, durable=True) as file:
        file.write(b"one\n")
        file.flush()
        if deleted:
            path.unlink()
        else:
            (tmp_path / "old").write_bytes(b"head\n")
            (tmp_path / "old").replace(path)
        for record in (b"two\n", b"three\n"):
            file.write(record)
            file.flush()
            assert path.read_bytes().endswith(record)
    assert path.read_bytes() == b"head\none\ntwo\nthree\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows"]


def test_nothing_is_put_back_into_a_folder_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "run" / "rows"
    path.parent.mkdir()
    path.touch()
    with GrowingFile(path, durable=True) as file:
        file.write(b"one\n")
        shutil.rmtree(path.parent)
        with pytest.raises(FileNotFoundError):
            file.flush()
    assert not path.parent.exists()
