import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import StorageError
from shoal.storage.location import Location
from shoal.storage.uri import Uri, parse

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\x00"), min_size=1).filter(
    lambda name: name not in (".", "..")
)


@pytest.mark.parametrize(
    ("given", "uri", "name", "parent"),
    [
        ("/data/a", "/data/a", "a", "/data"),
        ("/data//b/../a/", "/data/a", "a", "/data"),
        ("file:///data/with%20space", "/data/with space", "with space", "/data"),
        ("s3://bucket/a/b", "s3://bucket/a/b", "b", "s3://bucket/a"),
        ("S3://bucket//a/b/", "s3://bucket/a/b", "b", "s3://bucket/a"),
        ("s3://bucket/a", "s3://bucket/a", "a", "s3://bucket"),
        ("s3://bucket", "s3://bucket", "bucket", "s3://bucket"),
        ("s3://b/a/c?region=x&scheme=http", "s3://b/a/c?region=x&scheme=http", "c", "s3://b/a?region=x&scheme=http"),
        ("gs://bucket/two words", "gs://bucket/two%20words", "two words", "gs://bucket"),
    ],
)
def test_a_place_has_one_form_and_its_folder_is_on_the_same_store(given: str, uri: str, name: str, parent: str) -> None:
    place = Location.parse(given)
    assert (str(place), place.name, str(place.parent)) == (uri, name, parent)
    assert Location.parse(place) is place
    assert Location.parse(uri) == place


def test_relative_paths_and_home_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Location.parse("runs/a").local == Path(os.getcwd(), "runs/a")  # noqa: PTH109
    assert Location.parse(Path("runs/a")) == Location.parse("runs/a")
    assert Location.parse("~/a").local == tmp_path / "a"
    assert Location.parse("s3://bucket/a").local is None


@given(NAMES, NAMES)
def test_any_name_comes_back_from_a_uri(one: str, two: str) -> None:
    place = Location.parse("s3://bucket/data?region=x") / one / two
    parsed = parse(str(place))
    assert isinstance(parsed, Uri)
    assert (parsed.key, parsed.query, place.name) == (f"data/{one}/{two}", "region=x", two)
    assert place.parent.parent == Location("s3://bucket/data?region=x")


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("s3://bucket/a b/c", "bucket/a b/c"),
        ("s3://bucket", "bucket"),
        ("gs://anonymous@bucket/a", "bucket/a"),
        ("abfss://container@account.dfs.core.windows.net/a", "container/a"),
        ("hdfs://user@node:8020/a/b", "/a/b"),
    ],
)
def test_the_file_system_gets_its_own_kind_of_path(uri: str, path: str) -> None:
    parsed = parse(uri)
    assert isinstance(parsed, Uri)
    assert parsed.path == path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("s3:///key", r"no bucket; write s3://BUCKET/PATH"),
        ("s3:/bucket/key", r"two slashes after its scheme; write s3://…"),
        ("http://host/a", r"http://: no such kind of storage.*use a local path or one of file://, s3://"),
        ("s3a://bucket/a", r"did you mean 's3'"),
        ("s3://bucket/../a", r"no '\.' or '\.\.'"),
        ("file://host/a", r"names no other machine"),
    ],
)
def test_what_is_no_place_is_refused(text: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        Location.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIA:hidden@bucket/a",
        "s3://hidden@bucket/a",
        "s3://bucket/a?access_key=hidden",
        "s3://bucket/a?secret_key=hidden&region=x",
        "abfs://container:hidden@account/a",
        "abfs://container@account/a?sas_token=hidden",
    ],
)
def test_credentials_in_a_uri_are_refused_without_repeating_them(text: str) -> None:
    with pytest.raises(StorageError, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") as caught:
        Location.parse(text)
    assert "hidden" not in str(caught.value)
