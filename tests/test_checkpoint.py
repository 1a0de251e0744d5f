import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from shoal import checkpoint
from shoal.checkpoint import FORMAT_VERSION, Checkpoint, NewerFormatError, directory_name, newest, prune, read, saved
from shoal.errors import CheckpointError

TENSORS = {
    "nets/encoder.weight": torch.arange(24, dtype=torch.float32).reshape(4, 6),
    "nets/encoder.view": torch.arange(24, dtype=torch.float32).reshape(4, 6).T[::2],
    "nets/encoder.count": torch.tensor(7),
    "nets/decoder.half": torch.ones(3, dtype=torch.bfloat16),
    "nets/decoder.none": torch.zeros(0, 3),
    "optim/reconstruction/encoder.weight/step": torch.tensor(3.0),
}


def write(folder: Path, samples: int, tensors: dict[str, Tensor] | None = None) -> Path:
    path = folder / directory_name(samples)
    checkpoint.write(
        path,
        TENSORS if tensors is None else tensors,
        samples=samples,
        batches=samples // 10,
        shape=(3, 32, 32),
        stream={"position": samples, "fingerprint": "abc"},
        config={"batch": 10},
    )
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def newest_samples(folder: Path, passed_over: list[str] | None = None) -> int:
    found = newest(folder, passed_over=passed_over)
    assert found is not None
    return found.samples


def edit_state(path: Path, **changes: Any) -> None:
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, **changes}))


def test_what_was_written_is_read_back(folder: Path, differing: Callable[..., list[str]]) -> None:
    path = write(folder, 600)
    found = read(path)
    assert found == Checkpoint(path, 600, 60, (3, 32, 32), {"position": 600, "fingerprint": "abc"}, {"batch": 10})
    assert differing(found.tensors(), TENSORS) == []


def test_tensors_lie_in_safetensors_and_nothing_else_is_there(
    folder: Path, differing: Callable[..., list[str]]
) -> None:
    path = write(folder, 600)
    assert sorted(file.name for file in path.iterdir()) == ["state.json", "tensors.safetensors"]
    assert differing(load_file(path / "tensors.safetensors"), TENSORS) == []
    assert json.loads((path / "state.json").read_text())["version"] == FORMAT_VERSION == 1
    assert [file.name for file in folder.iterdir()] == ["000000000600"]


def test_names_sort_as_numbers_do() -> None:
    names = [directory_name(samples) for samples in (0, 9, 10, 99_999, 100_000, 10**9, 10**12 - 1)]
    assert names == sorted(names)
    assert [int(name) for name in names] == [0, 9, 10, 99_999, 100_000, 10**9, 10**12 - 1]


def test_writing_over_a_checkpoint_replaces_it(folder: Path) -> None:
    write(folder, 600)
    path = write(folder, 600, {"nets/x": torch.ones(2)})
    assert read(path).tensors().keys() == {"nets/x"}
    assert len(list(folder.iterdir())) == 1


def failing_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes = Path.write_bytes

    def half(self: Path, data: bytes) -> int:
        write_bytes(self, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)


def failing_state(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(self: Path, text: str, *args: Any) -> int:
        self.write_bytes(text.encode()[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)


def failing_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)


def failing_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)


FAILURES = [failing_tensors, failing_state, failing_sync, failing_rename]


@pytest.mark.parametrize("fail", FAILURES)
def test_a_write_that_fails_midway_leaves_nothing(
    folder: Path, fail: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, 600)
    with monkeypatch.context() as patch:
        fail(patch)
        with pytest.raises(OSError, match="No space left"):
            write(folder, 700)
    assert [file.name for file in folder.iterdir()] == ["000000000600"]
    assert newest_samples(folder) == 600


@pytest.mark.parametrize("fail", FAILURES)
def test_a_write_over_a_good_checkpoint_that_fails_leaves_the_good_one(
    folder: Path,
    fail: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
    differing: Callable[..., list[str]],
) -> None:
    write(folder, 600)
    with monkeypatch.context() as patch:
        fail(patch)
        with pytest.raises(OSError, match="No space left"):
            write(folder, 600, {"nets/x": torch.ones(2)})
    assert newest_samples(folder) == 600
    assert differing(read(folder / directory_name(600)).tensors(), TENSORS) == []


def test_a_killed_writer_leaves_nothing_that_could_be_taken_for_a_checkpoint(folder: Path) -> None:
    write(folder, 600)
    shutil.copytree(write(folder, 700), folder / ".000000000800.0a1b2c3d.tmp")
    (folder / ".000000000900.0a1b2c3d.tmp").mkdir()
    (folder / "notes").mkdir()
    (folder / "000000000999").write_text("a file")
    assert [path.name for path in saved(folder)] == ["000000000700", "000000000600"]
    assert newest_samples(folder) == 700


def test_without_checkpoints_there_is_no_newest(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    assert newest(tmp_path / "nowhere") is None


def truncate(path: Path) -> None:
    file = path / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def change_byte(path: Path) -> None:
    file = path / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def change_header(path: Path) -> None:
    file = path / "tensors.safetensors"
    file.write_bytes(file.read_bytes().replace(b"F32", b"I32", 1))


def remove_state(path: Path) -> None:
    (path / "state.json").unlink()


def remove_tensors(path: Path) -> None:
    (path / "tensors.safetensors").unlink()


def garbage(path: Path) -> None:
    (path / "state.json").write_text("{not json")


def cut_state(path: Path) -> None:
    (path / "state.json").write_bytes((path / "state.json").read_bytes()[:-20])


def bytes_in_state(path: Path) -> None:
    (path / "state.json").write_bytes(b"\xff\xfe\x00")


def empty_state(path: Path) -> None:
    (path / "state.json").write_bytes(b"")


def list_state(path: Path) -> None:
    (path / "state.json").write_text("[1, 2]")


def no_clock(path: Path) -> None:
    state = json.loads((path / "state.json").read_text())
    del state["samples"]
    (path / "state.json").write_text(json.dumps(state))


def bad_shape(path: Path) -> None:
    edit_state(path, shape=[3, 32])


def text_version(path: Path) -> None:
    edit_state(path, version="one")


def other_clock(path: Path) -> None:
    edit_state(path, samples=601)


def empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


DAMAGES: list[Callable[[Path], None]] = [
    truncate,
    change_byte,
    change_header,
    remove_state,
    remove_tensors,
    garbage,
    cut_state,
    bytes_in_state,
    empty_state,
    list_state,
    no_clock,
    bad_shape,
    text_version,
    other_clock,
    empty,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_is_passed_over_and_said_so(folder: Path, damage: Callable[[Path], None]) -> None:
    for samples in (600, 700, 800):
        write(folder, samples)
    damage(folder / directory_name(800))
    with pytest.raises(CheckpointError, match="000000000800"):
        read(folder / directory_name(800))
    passed_over: list[str] = []
    assert newest_samples(folder, passed_over) == 700
    assert len(passed_over) == 1
    assert str(folder / directory_name(800)) in passed_over[0]
    assert newest_samples(folder) == 700


def test_any_changed_byte_of_the_state_is_noticed(folder: Path) -> None:
    path = write(folder, 600)
    good = read(path)
    whole = (path / "state.json").read_bytes()
    unnoticed = []
    for place in range(len(whole)):
        (path / "state.json").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found = read(path)
        except CheckpointError:
            continue
        if found != good:
            unnoticed.append(whole[max(0, place - 15) : place + 5])
    assert unnoticed == []


def test_several_damaged_ones_are_passed_over_newest_first(folder: Path) -> None:
    for samples in (600, 700, 800):
        write(folder, samples)
    truncate(folder / directory_name(700))
    change_byte(folder / directory_name(800))
    passed_over: list[str] = []
    assert newest_samples(folder, passed_over) == 600
    assert [text.split(":")[0].rpartition("/")[2] for text in passed_over] == ["000000000800", "000000000700"]
    assert "does not match its checksum; it is damaged" in passed_over[0]
    assert "cut off" in passed_over[1]


def test_damage_behind_a_good_newest_is_not_spoken_of(folder: Path) -> None:
    for samples in (600, 700):
        write(folder, samples)
    truncate(folder / directory_name(600))
    passed_over: list[str] = []
    assert newest_samples(folder, passed_over) == 700
    assert passed_over == []


def test_all_damaged_is_an_error_that_names_each(folder: Path) -> None:
    for samples in (600, 700):
        truncate(write(folder, samples))
    passed_over: list[str] = []
    with pytest.raises(CheckpointError) as caught:
        newest(folder, passed_over=passed_over)
    said = str(caught.value)
    assert f"no checkpoint in {folder} verifies; start anew with another --out" in said
    assert "000000000700" in said
    assert "000000000600" in said


def test_a_newer_format_is_refused_by_name_and_not_fallen_back_over(folder: Path) -> None:
    write(folder, 600)
    edit_state(write(folder, 700), version=FORMAT_VERSION + 1)
    with pytest.raises(NewerFormatError, match=r"000000000700 has format version 2; this Shoal reads up to 1: upgrade"):
        newest(folder)


def test_a_newer_format_behind_a_damaged_one_is_refused_too(folder: Path) -> None:
    write(folder, 500)
    edit_state(write(folder, 600), version=FORMAT_VERSION + 1)
    truncate(write(folder, 700))
    with pytest.raises(NewerFormatError, match="000000000600"):
        newest(folder)


def test_a_newer_format_may_have_other_fields(folder: Path) -> None:
    path = write(folder, 600)
    (path / "state.json").write_text(json.dumps({"version": 99, "everything": "else"}))
    (path / "tensors.safetensors").unlink()
    with pytest.raises(NewerFormatError, match="format version 99"):
        newest(folder)


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_pruning_keeps_the_newest_and_clears_what_killed_writers_left(folder: Path, keep: int) -> None:
    for samples in (100, 200, 300, 400):
        write(folder, samples)
    (folder / ".000000000500.0a1b2c3d.tmp").mkdir()
    (folder / ".000000000500.0a1b2c3d.tmp" / "tensors.safetensors").write_bytes(b"half")
    prune(folder, keep)
    left = [directory_name(samples) for samples in (100, 200, 300, 400)][-keep:]
    assert sorted(path.name for path in folder.iterdir()) == left
    assert newest_samples(folder) == 400
