"""Runs and data sets on a real S3 endpoint by the command line: trained, killed, resumed, looked at."""

import json
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from tests.processes import DEADLINE_SEC, start
from tests.storage.faulty import Fault
from tests.storage.s3 import S3

from shoal import storage_trouble
from shoal.checkpoint import newest, read, saved
from shoal.remote_checkpoint import fetch, names, samples_of
from shoal.run import Run, read_rows
from shoal.run_files import read_ended
from shoal.storage.location import Location
from shoal.storage.retry import Patience, patience
from shoal_ray.following import followed

Shoal = Callable[..., Any]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of this node."""
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SHOAL_CACHE_BYTES", "1GiB")
    return tmp_path / "cache"


@pytest.fixture
def far(s3: S3, pristine: Path, cache: Path) -> Location:
    """Return a data set at a URI."""
    for file in pristine.iterdir():
        (s3.root / "data" / file.name).upload(file)
    return s3.root / "data"


def refused(said: Any, *words: str) -> None:
    assert said.code == 2, said.out
    for word in words:
        assert word in said.error.replace("\n", "")


def upload(run: Path, home: Location) -> None:
    """Copy a run to a URI, as any tool would."""
    for file in (file for file in run.rglob("*") if file.is_file() and file.name != ".lock"):
        (home / str(file.relative_to(run))).upload(file)


def download(home: Location, target: Path) -> Path:
    """Copy a run as any tool would: all that is below its URI."""
    for name in home.files():
        (home / name).download(target / name)
    return target


def named_by_chance(file: Path) -> bool:
    return "tfevents" in file.name or file.parent.name == ".owners"


def samples(paths: Iterable[Path | str]) -> list[int]:
    return [samples_of(Path(path).name) for path in paths]


def same_tensors(one: Path, two: Path) -> bool:
    ours, theirs = newest(one / "checkpoints"), newest(two / "checkpoints")
    assert ours is not None
    assert theirs is not None
    expected, found = ours.tensors(), theirs.tensors()
    return ours.samples == theirs.samples and all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_run_at_a_uri_has_what_a_run_in_a_directory_has(
    shoal: Shoal, tiny: Sequence[str], far: Location, s3: S3, trained: Path, tmp_path: Path
) -> None:
    home = s3.root / "runs" / "x"
    said = shoal("train", "seed-autoencoder", *tiny, "--data", far, "--out", home, "--local")
    assert said.code == 0, said.error
    assert str(home) in said.out
    there = download(home, tmp_path / "there")
    files, expected = (
        {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file() and not named_by_chance(file)}
        for run in (there, trained)
    )
    assert files == expected - {".lock"}
    assert len(list(there.glob("tensorboard/*"))) == len(list(there.glob("checkpoints/.owners/*"))) == 1
    assert (read_ended(home)["how"], read_ended(home)["samples"]) == ("finished", 320)
    assert same_tensors(there, trained)
    assert json.loads((there / "environment.json").read_text())["data"] == str(far)


def test_a_file_uri_is_a_directory(shoal: Shoal, tiny: Sequence[str], data: Path, tmp_path: Path) -> None:
    words = ("--data", f"file://{data}", "--out", f"file://{tmp_path / 'run'}", "--local")
    said = shoal("train", "seed-autoencoder", *tiny, *words)
    assert said.code == 0, said.error
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["data"] == str(data)
    assert shoal("eval", f"file://{tmp_path / 'run'}").code == 0
    assert (tmp_path / "run" / "eval.json").is_file()


def test_all_that_looks_at_a_run_looks_at_one_at_a_uri(
    shoal: Shoal, far: Location, s3: S3, cache: Path, trained: Path, tmp_path: Path
) -> None:
    home = s3.root / "runs" / "x"
    upload(trained, home)
    said = shoal("eval", home, "--data", far, "--json")
    assert said.code == 0, said.error
    assert (home / "eval.json").read_bytes().decode() == said.out
    here = json.loads(shoal("eval", trained, "--json").out)
    assert json.loads(said.out)["metrics"] == here["metrics"]

    said = shoal("reconstruct", home, "--data", far, "--num", "4")
    assert said.out == f"{home / 'reconstructions.png'}\n"
    assert shoal("reconstruct", trained, "--num", "4").code == 0
    assert (home / "reconstructions.png").read_bytes() == (trained / "reconstructions.png").read_bytes()
    refused(shoal("sample", home), "generates no images")

    (listed,) = json.loads(shoal("runs", s3.root, "--json").out)
    (expected,) = json.loads(shoal("runs", trained, "--json").out)
    assert (listed.pop("name"), listed.pop("path")) == ("runs/x", str(home))
    assert listed.pop("when") is not None
    assert listed == {key: value for key, value in expected.items() if key in listed}
    assert listed["state"] == "finished"

    said = shoal("compare", home, trained, "--json", "--out", home / "both.png")
    assert said.code == 0, said.error
    assert json.loads(said.out)["differences"] == {}
    assert (home / "both.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in cache.glob("runs/*/*")] == ["read"]  # nothing was prepared to be written


def test_pictures_are_made_of_a_run_at_a_uri(
    shoal: Shoal, tiny: Sequence[str], data: Path, s3: S3, cache: Path, tmp_path: Path
) -> None:
    home = s3.root / "gan"
    said = shoal("train", "seed-gan", *tiny, "--data", data, "--out", home, "--local")
    assert said.code == 0, said.error
    assert shoal("sample", home, "--num", "4").out == f"{home / 'samples.png'}\n"
    assert shoal("sample", home, "--num", "4", "--out", tmp_path / "here.png").code == 0
    assert (tmp_path / "here.png").read_bytes() == (home / "samples.png").read_bytes()


def test_a_damaged_newest_checkpoint_is_passed_over(shoal: Shoal, s3: S3, cache: Path, trained: Path) -> None:
    home = s3.root / "x"
    upload(trained, home)
    newest, older, *_ = names((home / "checkpoints").files())
    tensors = home / "checkpoints" / newest / "tensors.safetensors"
    content = bytearray(tensors.read_bytes())
    content[len(content) // 2] ^= 1
    tensors.write_bytes(content)
    said = shoal("eval", home, "--json")
    assert said.code == 0, said.error
    assert json.loads(said.out)["samples"] == int(older)
    assert f"passed over: checkpoint {home / 'checkpoints' / newest}" in said.error.replace("\n", "")
    tensors.write_bytes(content[:100])
    assert "100 bytes" in shoal("eval", home, "--json").error
    tensors.delete()
    assert json.loads(shoal("eval", home, "--json").out)["samples"] == int(older)

    # A run goes on from the sound one, and leaves nothing that is damaged.
    said = shoal("train", "--resume", "--out", home, "--local")
    assert said.code == 0, said.error
    assert f"going on at sample {int(older):,}" in said.out
    assert samples(names((home / "checkpoints").files())) == [320, 240, 160]
    assert not [name for name in home.files() if f"/{newest}/" in name]
    assert same_tensors(download(home, cache / "there"), trained)


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(
    shoal: Shoal, tiny: Sequence[str], far: Location, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = [f"{section}.every_samples=1600" for section in ("checkpoint", "report")]
    words = [*tiny, *often, "report.images_every_samples=0", "duration_samples=16000"]
    home = s3.root / "runs" / "x"
    process = start("train", "seed-autoencoder", *words, "--data", str(far), "--out", str(home), "--local")
    uploads: list[int] = []

    def kill(method: str, path: str) -> None:
        if method == "PUT" and path.partition("?")[0].endswith("state.json"):
            sample = samples_of(path.split("/")[-2])
            if uploads and sample > max(uploads):
                process.kill()
                process.wait()
                raise ConnectionError  # the request goes down with it
            uploads.append(sample)

    s3.endpoint.before = kill
    said = process.communicate(timeout=DEADLINE_SEC)[0]
    s3.endpoint.before = lambda method, path: None
    assert process.returncode == -signal.SIGKILL, said
    left = download(home, tmp_path / "left")
    reached = max(uploads)
    assert samples(names((home / "checkpoints").files()))[0] == reached < 16000
    assert len(list(left.glob("checkpoints/*/tensors.safetensors"))) == len(uploads) + 1  # the next one's had arrived

    straight = tmp_path / "straight"
    said = shoal("train", "seed-autoencoder", *words, "--data", far, "--out", straight, "--local")
    assert said.code == 0, said.error

    def resume(node: str) -> str:
        with monkeypatch.context() as patch:
            if node == "another":
                patch.setenv("SHOAL_CACHE", str(tmp_path / "another"))
            said = shoal("train", "--resume", "--out", home, "--local")
        assert said.code == 0, said.error
        there = download(home, tmp_path / f"from-{node}")
        assert same_tensors(there, straight)
        kept = saved(there / "checkpoints")
        assert samples(kept) == samples(saved(straight / "checkpoints"))
        assert all(read(path) for path in kept)
        found, expected = (read_rows(run / "metrics.jsonl") for run in (there, straight))
        assert [row["samples"] for row in found] == [row["samples"] for row in expected]
        return " ".join(str(said.out).split())

    assert f"going on at sample {reached:,}" in resume("another")
    home.delete()
    upload(left, home)
    said = resume("this")
    assert f"which did not reach {home}: sample {reached:,} is the newest there" in said
    assert f"going on at sample {reached:,}" not in said


def test_a_store_that_is_away_for_a_while_is_waited_for(
    shoal: Shoal, tiny: Sequence[str], far: Location, s3: S3, tmp_path: Path, trained: Path
) -> None:
    home = s3.root / "x"
    waits: list[str] = []

    def come_back(text: str) -> None:
        waits.append(text)
        if len(waits) == 3:
            s3.endpoint.back()

    def leave(method: str, path: str) -> None:
        if "metrics.jsonl" in path and method == "PUT" and not waits:
            Thread(target=s3.endpoint.away).start()

    s3.endpoint.before = leave
    with patience(Patience(first_sec=0.01, on_wait=come_back)):
        said = shoal("train", "seed-autoencoder", *tiny, "--data", far, "--out", home, "--local")
    assert said.code == 0, said.error
    assert "does not answer" in waits[0]
    assert same_tensors(download(home, tmp_path / "there"), trained)


def test_a_store_that_is_away_for_longer_than_one_asks_is_waited_for_too(
    shoal: Shoal, tiny: Sequence[str], data: Path, s3: S3, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is new while it answers 503 is kept here, and sent afterwards."""
    home = s3.root / "x"
    words = [*tiny, "duration_samples=6400", "checkpoint.every_samples=640", "report.images_every_samples=0"]
    gone = False

    def go(method: str, path: str) -> None:
        nonlocal gone
        if "metrics.jsonl" in path and method == "PUT" and not gone:
            gone = True
            s3.endpoint.faults.append(Fault(20, status=503))

    s3.endpoint.before = go
    with patience(Patience(total_sec=0.05, first_sec=0.01, on_wait=lambda text: None)):
        said = shoal("train", "seed-autoencoder", *words, "--data", data, "--out", home, "--local")
    assert said.code == 0, said.error
    assert [fault.times for fault in s3.endpoint.faults] == [0]  # for several times as long as a request is repeated
    told = [record.message for record in caplog.records if record.name == "shoal.run"]
    assert len(told) <= 2  # once, if training went on at all, and once that it is over
    straight = tmp_path / "straight"
    assert shoal("train", "seed-autoencoder", *words, "--data", data, "--out", straight, "--local").code == 0
    there = download(home, tmp_path / "there")
    assert same_tensors(there, straight)
    found, expected = (read_rows(run / "metrics.jsonl") for run in (there, straight))
    assert [row["samples"] for row in found] == [row["samples"] for row in expected]


def test_a_store_that_stays_away_stops_the_run_and_nothing_is_lost(
    shoal: Shoal,
    tiny: Sequence[str],
    far: Location,
    s3: S3,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = s3.root / "x"
    s3.endpoint.before = lambda method, path: (
        s3.endpoint.faults.append(Fault(1_000_000, status=503))
        if "metrics.jsonl" in path and method == "PUT" and not s3.endpoint.faults
        else None
    )
    words = [*tiny, "duration_samples=1e6", "checkpoint.every_samples=0"]
    with patience(Patience(total_sec=0.2, first_sec=0.01, on_wait=lambda text: None)), monkeypatch.context() as patch:
        patch.setattr(storage_trouble, "PATIENCE_SEC", 0.0)
        patch.setattr(storage_trouble, "PATIENCE_AT_END_SEC", 0.0)
        said = shoal("train", "seed-autoencoder", *words, "--data", far, "--out", home, "--local")
    (copy,) = cache.glob("runs/*/written/x")
    refused(said, "storage does not answer", f"is kept in {copy} on this machine", "--resume")
    (kept,) = saved(copy / "checkpoints")
    s3.endpoint.faults.clear()
    s3.endpoint.before = lambda method, path: None
    assert names((home / "checkpoints").files()) == []
    until = f"duration_samples={read(kept).samples + 160}"
    said = shoal("train", "--resume", "--out", home, "--local", until)
    assert said.code == 0, said.error
    assert same_tensors(download(home, tmp_path / "there"), copy)
    straight = tmp_path / "straight"
    words = [*tiny, until, "checkpoint.every_samples=0"]
    assert shoal("train", "seed-autoencoder", *words, "--data", far, "--out", straight, "--local").code == 0
    assert same_tensors(straight, copy)


DENIED = b"<Error><Code>InvalidAccessKeyId</Code><Message>no such key</Message></Error>"


def test_what_a_store_refuses_is_said_before_anything_is_written(
    shoal: Shoal, tiny: Sequence[str], data: Path, far: Location, s3: S3, cache: Path, tmp_path: Path
) -> None:
    words = ("train", "seed-autoencoder", *tiny, "--local")
    before = s3.root.files()
    s3.endpoint.faults.append(Fault(1_000, "PUT", status=403, body=DENIED))
    refused(shoal(*words, "--data", data, "--out", s3.root / "x"), "the store refuses it", "AWS_ACCESS_KEY_ID")
    s3.endpoint.faults.append(Fault(1_000, status=403, body=DENIED))
    refused(shoal(*words, "--data", far, "--out", tmp_path / "x"), "the store refuses it", "AWS_ACCESS_KEY_ID")
    refused(shoal("eval", s3.root / "x"), "the store refuses it")
    s3.endpoint.faults.clear()
    nowhere = s3.location("s3://no-such-bucket")
    refused(shoal(*words, "--data", data, "--out", nowhere / "x"), "no such bucket 'no-such-bucket'")
    refused(shoal(*words, "--data", nowhere / "data", "--out", tmp_path / "x"), f"data set {nowhere / 'data'}")
    refused(shoal("eval", nowhere / "x"), "no such bucket")
    refused(shoal("eval", s3.root / "data"), "is not a run directory", "no such object")
    refused(shoal("runs", s3.root / "nothing"), "holds no runs")
    refused(shoal(*words, "--data", data, "--out", s3.root / "data"), "exists and is not a run")
    refused(shoal(*words, "--data", data, "--out", "s3://key:secret@bucket/x"), "credentials inside a URI")
    refused(shoal("tune", "vae-pbt", "--data", data, "--out", s3.root / "x"), "not at a URI")
    assert s3.root.files() == before
    assert not (tmp_path / "x").exists()
    assert not list(cache.glob("runs/*/written/*"))


def test_a_run_is_not_written_over_and_not_trained_twice(
    shoal: Shoal, tiny: Sequence[str], far: Location, s3: S3
) -> None:
    home = s3.root / "x"
    words = ("train", "seed-autoencoder", *tiny, "--data", far, "--out", home, "--local")
    assert shoal(*words).code == 0
    before = {name: (home / name).read_bytes() for name in home.files()}
    refused(shoal(*words), "already holds a run", "--resume")
    again = ("train", "--resume", "--out", home, "--local", "duration_samples=640")
    with Run.open(home, writes=True).locked():
        refused(shoal(*again), f"{home} is being trained by another process")
    assert {name: (home / name).read_bytes() for name in home.files()} == before
    assert shoal(*again).code == 0


def test_a_copy_of_a_run_that_is_no_longer_there_is_not_gone_on_from(
    shoal: Shoal, tiny: Sequence[str], far: Location, s3: S3, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = s3.root / "x"
    words = ("train", "seed-autoencoder", *tiny, "--data", far, "--out", home, "--local")
    assert shoal(*words).code == 0
    home.delete()
    with monkeypatch.context() as patch:
        patch.setenv("SHOAL_CACHE", str(cache / "another"))
        assert shoal(*words, "seed=1", "duration_samples=160").code == 0
    said = shoal("train", "--resume", "--out", home, "--local")
    assert said.code == 0, said.error
    assert "nothing to do at sample 160" in said.out
    assert len(list(cache.glob("runs/*/written/x.*"))) == 1


def test_whoever_lists_at_any_moment_finds_only_whole_checkpoints(
    shoal: Shoal, tiny: Sequence[str], data: Path, s3: S3, cache: Path, tmp_path: Path
) -> None:
    home = s3.root / "x"
    direct = Location.parse(str(home / "checkpoints").replace(str(s3.endpoint.port), str(s3.endpoint.target)))
    direct.files()  # now: Arrow opens no other store while a request is under way
    looks: list[list[str]] = []
    problems: list[Exception] = []

    def look(method: str, path: str) -> None:
        if method not in ("GET", "HEAD"):
            try:
                files = direct.files()
                for name in names(files):
                    target = tmp_path / "looks" / str(len(looks)) / name
                    fetch(direct / name, target, files.get(f"{name}/tensors.safetensors"))
                looks.append(names(files))
            except Exception as error:  # the proxy would swallow it
                problems.append(error)

    s3.endpoint.before = look
    said = shoal("train", "seed-autoencoder", *tiny, "--data", data, "--out", home, "--local")
    s3.endpoint.before = lambda method, path: None
    assert said.code == 0, said.error
    assert problems == []
    assert len(looks) > 10
    assert samples(names(direct.files())) == [320, 240, 160]


def test_every_node_goes_on_from_the_checkpoint_that_the_first_worker_chose(
    far: Location, s3: S3, tmp_path: Path, launch_world: Callable[..., list[str]]
) -> None:
    home = s3.root / "x"
    launch_world(2, Path(__file__).parents[1] / "ranks" / "remote.py", home, far, tmp_path)
    assert same_tensors(download(home, tmp_path / "there"), tmp_path / "straight")
    (copy,) = (tmp_path / "node-1").glob("runs/*/written/x")
    assert samples(saved(copy / "checkpoints")) == [5 * 16]  # what it was told to begin with last
    assert not (copy / "metrics.jsonl").exists()


def test_the_driver_sees_a_run_that_is_trained_on_another_node(
    s3: S3, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = s3.root / "x"
    upload(trained, home)
    metrics, failures = home / "metrics.jsonl", home / "failures.jsonl"
    failures.write_bytes(b'{"time": 1}\n')
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "driver"))
    monkeypatch.setattr("shoal_ray.following.EVERY_SEC", 0.01)
    run = Run.open(home, writes=True)
    with followed(run) as seen:
        assert read_rows(seen.path / "failures.jsonl") == [{"time": 1}]
        longer = metrics.read_bytes() + b'{"samples": 336}\n'
        metrics.write_bytes(longer)
        with (seen.path / "failures.jsonl").open("a") as file:
            file.write('{"time": 2}\n')
        wait_for(lambda: seen.metrics()[-1]["samples"] == 336 and failures.size() == 24)
        s3.endpoint.faults.append(Fault(20, status=403, body=DENIED))  # nobody's concern but the next look's
        wait_for(lambda: not s3.endpoint.faults[0].times)
        metrics.write_bytes(longer + b'{"samples": 352}\n')
    assert seen.metrics()[-1]["samples"] == 352
    assert not (run.path / "metrics.jsonl").exists()


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SEC
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # between two looks; nothing relies on its length
