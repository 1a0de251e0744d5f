import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal.data import DataSet, load_manifest
from shoal.errors import DataError


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = path / "manifest.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def test_reads_what_was_written(path: Path) -> None:
    manifest = load_manifest(path)
    assert manifest.shape == (3, 4, 5)
    assert manifest.row_bytes == 60
    assert manifest.num_rows == 200
    assert list(manifest.splits) == ["train", "test"]
    assert manifest.to_json() == (path / "manifest.json").read_text()
    assert len(manifest.fingerprint) == 64
    histogram = manifest.shards[0].blocks[0].classes
    assert histogram is not None
    assert sum(histogram.values()) <= 16


def test_same_data_same_fingerprint(make: Callable[[str], Path]) -> None:
    one, two = load_manifest(make("one")), load_manifest(make("two"))
    assert one == two


def test_fingerprint_ignores_what_is_not_content(path: Path) -> None:
    manifest = load_manifest(path)
    shards = tuple(shard.model_copy(update={"path": "other.arrow", "bytes": 1}) for shard in manifest.shards)
    assert manifest.model_copy(update={"source": "elsewhere", "shards": shards}).digest() == manifest.fingerprint
    assert manifest.model_copy(update={"class_names": ("a", "b", "c", "d")}).digest() != manifest.fingerprint
    assert manifest.model_copy(update={"encoding": "encoded"}).digest() != manifest.fingerprint


def test_the_fingerprint_is_the_one_of_the_first_release(path: Path) -> None:
    assert load_manifest(path).fingerprint == "f9118d65fe77200a4a9f00d1c5b0d4f20c79f2818f17ae662769d0a9c039e327"


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent does not exist; make one with `shoal data import KIND SRC --out "):
        DataSet.open(tmp_path / "absent")


def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file is not a directory"):
        load_manifest(tmp_path / "file")


def test_a_directory_that_was_not_imported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no manifest.json, so it is not an imported data set; make one with"):
        load_manifest(tmp_path)


def test_newer_version(path: Path) -> None:
    edit(path, lambda document: document.update(version=3, news="unknown here"))
    with pytest.raises(DataError, match=r"manifest version 3 is newer than this shoal, which reads up to 2; upgrade"):
        load_manifest(path)


def test_changed_content(path: Path) -> None:
    edit(path, lambda document: document["class_names"].reverse())
    with pytest.raises(DataError, match=r"fingerprint is [0-9a-f]{12}… but the content gives [0-9a-f]{12}…"):
        load_manifest(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(extra=1), "extra: Extra inputs are not permitted"),
        (lambda d: d.pop("shape"), "shape: Field required"),
        (lambda d: d.update(version=None), "version: "),
        (lambda d: d.update(shape=[3, 0, 5]), r"shape.1: .* greater than or equal to 1"),
        (lambda d: d.update(version=2), "version 2 does not go with encoding 'raw'"),
        (lambda d: d.update(encoding="encoded"), "version 1 does not go with encoding 'encoded'"),
        (lambda d: d.update(version=2, encoding="zip"), "encoding: Input should be 'raw' or 'encoded'"),
        (lambda d: d.update(dtype="float32"), "dtype: Input should be 'uint8'"),
        (lambda d: d.update(labels=None), "class_names and labels must both be there or both be null"),
        (lambda d: d.update(splits={}), "there is no split"),
        (lambda d: d["splits"]["test"].update(rows=51), "the blocks of split 'test' do not add up"),
        (lambda d: d["shards"].pop(), "the blocks of split 'test' do not add up"),
        (lambda d: d["shards"].insert(0, d["shards"].pop()), "shards must follow the order of the splits"),
        (lambda d: d["shards"][0].update(rows=63), "the blocks of shard-00000.arrow do not add up"),
        (lambda d: d["shards"][0].update(path="../secret"), r"shards.0.path: String should match pattern"),
    ],
)
def test_malformed(path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit(path, change)
    with pytest.raises(DataError, match=rf"manifest.json is not a manifest that shoal wrote: .*{message}"):
        load_manifest(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe"])
def test_not_json(path: Path, content: bytes) -> None:
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=r"manifest.json is not a manifest that shoal wrote: .*; import the data again"):
        load_manifest(path)
