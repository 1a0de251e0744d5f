"""Checkpoints on a real S3 endpoint: what a reader finds there at any moment, and which one is taken."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tests.storage.faulty import Fault
from tests.storage.s3 import S3

from shoal import checkpoint, checkpoint_format
from shoal.checkpoint import FORMAT_VERSION, STATE, TENSORS, NewerFormatError, directory_name, read, saved
from shoal.errors import CheckpointError, StorageError
from shoal.remote_checkpoint import fetch, find, is_at, names, prune, publish
from shoal.storage.location import Location


def write(folder: Path, samples: int, value: float = 0.0) -> Path:
    path = folder / directory_name(samples)
    checkpoint.write(
        path,
        {"nets/encoder.weight": torch.full((50,), value)},
        samples=samples,
        batches=samples // 10,
        shape=(1, 8, 8),
        stream={"position": samples, "value": value},
        config={"batch": 10},
    )
    return path


def value_of(found: checkpoint.Checkpoint | None) -> tuple[int, float]:
    assert found is not None
    return found.samples, found.tensors()["nets/encoder.weight"][0].item()


@pytest.fixture
def home(s3: S3) -> Location:
    return s3.root / "checkpoints"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "copy"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Return the folder of whoever uploads."""
    return tmp_path / "made"


@contextmanager
def watched(s3: S3, home: Location, tmp_path: Path) -> Iterator[list[list[str]]]:
    """List and verify what is at a URI before each change while the block lasts."""
    direct = Location.parse(str(home).replace(str(s3.endpoint.port), str(s3.endpoint.target)))
    direct.files()  # now: Arrow opens no other store while a request is under way
    seen: list[list[str]] = []
    problems: list[Exception] = []

    def look(method: str, path: str) -> None:
        if method not in ("GET", "HEAD"):
            try:
                files = direct.files()
                for name in names(files):
                    fetch(direct / name, tmp_path / "looks" / str(len(seen)) / name, files.get(f"{name}/{TENSORS}"))
                seen.append(names(files))
            except Exception as error:  # the proxy would swallow it
                problems.append(error)

    s3.endpoint.before = look
    yield seen
    s3.endpoint.before = lambda method, path: None
    assert problems == []


def test_one_appears_when_it_is_whole(s3: S3, home: Location, made: Path, folder: Path, tmp_path: Path) -> None:
    path = write(made, 40)
    with watched(s3, home, tmp_path) as seen:
        assert publish(path, home / path.name)
    assert seen == [[], []]  # before the tensors, before the state
    assert is_at(home / path.name, path)
    assert value_of(find(home, folder).checkpoint) == (40, 0.0)


def test_one_in_the_place_of_another_is_never_half_of_each(
    s3: S3, home: Location, made: Path, folder: Path, tmp_path: Path
) -> None:
    publish(write(made, 40, 1.0), home / directory_name(40))
    with watched(s3, home, tmp_path) as seen:
        assert publish(write(made, 40, 2.0), home / directory_name(40))
    assert seen[0] == [directory_name(40)]
    assert [] in seen
    assert value_of(find(home, folder).checkpoint) == (40, 2.0)


def test_pruned_ones_vanish_whole(s3: S3, home: Location, made: Path, tmp_path: Path) -> None:
    for samples in (10, 20, 30, 40, 90):
        publish(write(made, samples), home / directory_name(samples))
    (home / directory_name(35) / TENSORS).write_bytes(b"of a writer that was killed")
    (home / "mine" / "thesis.txt").write_bytes(b"years of work")
    with watched(s3, home, tmp_path) as seen:
        prune(home, keep=2, now=40)
    assert len(seen) > 6
    assert sorted(home.files()) == [f"{directory_name(at)}/{file}" for at in (30, 40) for file in (STATE, TENSORS)] + [
        "mine/thesis.txt"
    ]


def test_what_does_not_verify_is_not_sent(home: Location, made: Path) -> None:
    path = write(made, 40)
    (path / TENSORS).write_bytes(b"damaged")
    assert not publish(path, home / path.name)
    shutil.rmtree(path)
    assert not publish(path, home / path.name)
    assert home.files() == {}


def test_the_copy_of_one_that_is_damaged_at_the_uri_counts(home: Location, made: Path, folder: Path) -> None:
    for samples in (20, 40):
        path = write(made, samples, samples / 10)
        publish(path, home / path.name)
    assert value_of(find(home, folder).checkpoint) == (40, 4.0)
    (home / directory_name(40) / TENSORS).write_bytes(b"damaged")
    found = find(home, folder)
    assert (found.at_home, found.newest_at_home) == (False, 40)
    assert value_of(found.checkpoint) == (40, 4.0)
    (home / directory_name(40) / STATE).write_bytes(b"damaged")
    found = find(home, folder)
    assert (found.at_home, found.newest_at_home) == (False, 40)
    assert value_of(found.checkpoint) == (40, 4.0)
    assert [str(home / directory_name(40)) in text for text in found.passed_over] == [True]
    shutil.rmtree(folder)
    assert value_of(find(home, folder).checkpoint) == (20, 2.0)
    shutil.rmtree(folder)
    (home / directory_name(20) / TENSORS).delete()
    with pytest.raises(CheckpointError, match=r"^no checkpoint in s3://.* verifies; start anew with another --out\n"):
        find(home, folder)


def test_the_newer_of_the_copy_and_the_uri_counts_and_of_two_equals_that_at_the_uri(
    home: Location, made: Path, folder: Path
) -> None:
    assert find(home, folder).checkpoint is None
    write(folder, 30, 3.0)
    found = find(home, folder)
    assert (found.at_home, found.newest_at_home, value_of(found.checkpoint)) == (False, None, (30, 3.0))
    publish(write(made, 20, 2.0), home / directory_name(20))
    found = find(home, folder)
    assert (found.at_home, found.newest_at_home, value_of(found.checkpoint)) == (False, 20, (30, 3.0))
    publish(write(made, 30, 9.0), home / directory_name(30))
    found = find(home, folder)
    assert (found.at_home, found.newest_at_home, value_of(found.checkpoint)) == (True, 30, (30, 9.0))


def test_a_damaged_copy_is_fetched_again(home: Location, made: Path, folder: Path) -> None:
    publish(write(made, 20, 2.0), home / directory_name(20))
    find(home, folder)
    (folder / directory_name(20) / TENSORS).write_bytes(b"damaged")
    assert value_of(find(home, folder).checkpoint) == (20, 2.0)
    assert read(folder / directory_name(20))


def test_one_that_is_pruned_under_the_readers_hands_is_looked_for_again(
    s3: S3, home: Location, made: Path, folder: Path
) -> None:
    for samples in (20, 40):
        publish(write(made, samples), home / directory_name(samples))
    direct = Location.parse(str(home).replace(str(s3.endpoint.port), str(s3.endpoint.target)))
    direct.files()

    def vanish(method: str, path: str) -> None:
        if directory_name(40) in path and TENSORS in path:
            (direct / directory_name(40) / STATE).delete()
            (direct / directory_name(40)).delete()

    s3.endpoint.before = vanish
    found = find(home, folder)
    assert (found.checkpoint and found.checkpoint.samples, found.passed_over) == (20, [])
    assert [path.name for path in saved(folder)] == [directory_name(20)]


def test_a_newer_format_is_not_passed_over(
    home: Location, made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(write(made, 20), home / directory_name(20))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_format, "FORMAT_VERSION", FORMAT_VERSION + 1)
        publish(write(made, 40), home / directory_name(40))
    with pytest.raises(NewerFormatError, match="upgrade it"):
        find(home, folder)


def test_another_one_than_the_one_that_was_chosen_is_refused(home: Location, made: Path, folder: Path) -> None:
    path = write(made, 20, 2.0)
    publish(path, home / path.name)
    chosen, size = (path / STATE).read_bytes(), (path / TENSORS).stat().st_size
    assert fetch(home / path.name, folder / path.name, size, chosen).samples == 20
    publish(write(made, 20, 3.0), home / path.name)
    with pytest.raises(CheckpointError, match="another process trains this run"):
        fetch(home / path.name, folder / path.name, size, chosen)


def test_a_store_that_refuses_is_no_damage(s3: S3, home: Location, made: Path, folder: Path) -> None:
    publish(write(made, 20), home / directory_name(20))
    publish(write(made, 40), home / directory_name(40))
    s3.endpoint.faults.append(Fault(100, "HEAD", status=403, path=f"{directory_name(40)}/{TENSORS}"))
    with pytest.raises(StorageError, match="the store refuses it"):
        find(home, folder)
