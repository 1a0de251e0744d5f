"""A real S3 endpoint that goes away, refuses and cuts off."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
from tests.storage.faulty import Fault
from tests.storage.s3 import S3

from shoal.errors import MissingError, StorageError
from shoal.storage.location import Location
from shoal.storage.retry import Patience, TransientError, patience, until_it_answers

BYTES = random.Random(0).randbytes(200_000)
INVALID_KEY = b"<Error><Code>InvalidAccessKeyId</Code><Message>Unknown key.</Message></Error>"


@pytest.fixture
def waits() -> Iterator[list[str]]:
    """Wait shortly between attempts, and keep what is said before each."""
    said: list[str] = []
    with patience(Patience(total_sec=30, first_sec=0.01, most_sec=0.1, on_wait=said.append)):
        yield said


OPERATIONS: dict[str, Callable[[Location, Path], object]] = {
    "size": lambda file, path: file.size(),
    "exists": lambda file, path: file.exists(),
    "list": lambda file, path: file.parent.list(),
    "files": lambda file, path: file.parent.files(),
    "read_bytes": lambda file, path: file.read_bytes(),
    "read_range": lambda file, path: file.read_range(5, 1000),
    "download": lambda file, path: file.download(path / "down"),
    "write_bytes": lambda file, path: file.write_bytes(BYTES),
    "delete": lambda file, path: file.delete(),
}


@pytest.mark.parametrize(
    ("operation", "status"), [*((name, 503) for name in OPERATIONS), ("read_bytes", 500), ("read_bytes", 429)]
)
def test_every_operation_outlasts_refusals(
    s3: S3, waits: list[str], tmp_path: Path, operation: str, status: int
) -> None:
    file = s3.root / "folder/file"
    file.write_bytes(BYTES)
    expected = OPERATIONS[operation](file, tmp_path)
    file.write_bytes(BYTES)
    fault = Fault(4, status=status)
    s3.endpoint.faults.append(fault)
    assert OPERATIONS[operation](file, tmp_path) == expected
    assert fault.times == 0
    assert waits
    assert all("storage does not answer (AWS Error" in text for text in waits)


@pytest.mark.parametrize("part", [1, 2, 3])
def test_an_upload_that_fails_in_any_part_leaves_the_old_object(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr("shoal.storage.remote.WRITE_BYTES", 11 << 20)
    file = s3.root / "file"
    file.write_bytes(b"before")
    source = tmp_path / "source"
    source.write_bytes(bytes(21 << 20))  # three parts
    # The client asks twice; after that the store is well again, and would complete what it has.
    fault = Fault(2, "PUT", status=500, path=f"partNumber={part}&")
    s3.endpoint.faults.append(fault)
    with patience(Patience(total_sec=0)), pytest.raises(StorageError, match=r"does not answer: .*HTTP status 500"):
        file.upload(source)
    assert fault.times == 0
    assert file.read_bytes() == b"before"


INTERRUPTED = """
import sys
from shoal.storage import remote
from shoal.storage.location import Location
remote.WRITE_BYTES = 11 << 20
try:
    Location.parse(sys.argv[1]).write_bytes(bytes(22 << 20))
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupted_upload_is_still_whole(s3: S3) -> None:
    file = s3.root / "file"
    file.write_bytes(b"before")
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        s3.endpoint.before = lambda method, path: process.send_signal(signal.SIGINT) if "partNumber=1" in path else None
        said = process.communicate(timeout=60)
    assert (process.returncode, *said) == (0, "interrupted\n", "")
    assert file.read_bytes() == bytes(22 << 20)


def test_a_body_that_is_cut_off_is_read_again(s3: S3, waits: list[str], tmp_path: Path) -> None:
    file = s3.root / "file"
    file.write_bytes(BYTES)
    s3.endpoint.faults.append(Fault(3, "GET", cut="announced"))
    assert file.read_bytes() == BYTES
    s3.endpoint.faults.append(Fault(3, "GET", cut="announced"))
    file.download(tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == BYTES
    assert waits
    assert all("partial file" in text for text in waits)


def test_an_open_file_reads_on_when_the_endpoint_is_back(s3: S3, waits: list[str]) -> None:
    file = s3.root / "file"
    file.write_bytes(BYTES)
    with file.open_input() as opened:
        assert opened.read(1000) == BYTES[:1000]
        s3.endpoint.away()

        def come_back(text: str) -> None:
            waits.append(text)
            if len(waits) == 3:
                s3.endpoint.back()

        with patience(Patience(first_sec=0.01, on_wait=come_back)):
            assert opened.read() == BYTES[1000:]
    assert len(waits) == 3
    assert "Could not connect" in waits[-1]


def test_an_endpoint_that_is_away_for_five_seconds_is_waited_for(s3: S3) -> None:
    file = s3.root / "file"
    file.write_bytes(BYTES)
    s3.endpoint.away()
    begin = time.monotonic()

    def come_back() -> None:
        time.sleep(5)  # the fault itself, not a way of waiting for something
        s3.endpoint.back()

    returning = Thread(target=come_back)
    returning.start()
    said: list[str] = []
    with patience(Patience(on_wait=said.append)):
        assert file.read_bytes() == BYTES
    returning.join()
    assert 5 <= time.monotonic() - begin < 20
    assert len(said) >= 3


def test_patience_ends_with_what_the_store_said_and_what_to_do(s3: S3) -> None:
    s3.endpoint.away()
    with (
        patience(Patience(total_sec=0.2, first_sec=0.05, on_wait=lambda text: None)),
        pytest.raises(
            StorageError,
            match=r"s3://.*/file.*: storage does not answer: .*Could not connect.*check the network, and the"
            r" endpoint \(AWS_ENDPOINT_URL, or \?endpoint_override=",
        ),
    ):
        (s3.root / "file").read_bytes()
    s3.endpoint.back()


@pytest.mark.parametrize("operation", ["size", "read_bytes", "list", "write_bytes"])
def test_wrong_credentials_are_said_at_once(s3: S3, waits: list[str], tmp_path: Path, operation: str) -> None:
    file = s3.root / "file"
    file.write_bytes(BYTES)
    before = len(s3.endpoint.requests)
    assert s3.ask("POST", "/moto-api/reset-auth", b"0") == 200  # from now on the server checks who asks
    try:
        with pytest.raises(StorageError, match=r"the store refuses it: .*check AWS_ACCESS_KEY_ID") as caught:
            OPERATIONS[operation](file, tmp_path)
    finally:
        s3.ask("POST", "/moto-api/reset-auth", b"inf")
    assert not isinstance(caught.value, MissingError)
    assert not waits
    assert len(s3.endpoint.requests) == before + 1


def test_what_cannot_pass_is_not_tried_again(s3: S3, waits: list[str]) -> None:
    for missing in (s3.location("s3://no-such-bucket/file"), s3.root / "none"):
        with pytest.raises(MissingError, match=r"no such bucket 'no-such-bucket'|no such object"):
            missing.read_bytes()
    with pytest.raises(MissingError, match="no such bucket 'no-such-bucket'; create it, or check its name"):
        s3.location("s3://no-such-bucket/file").write_bytes(b"")
    s3.endpoint.faults.append(Fault(1, status=403, body=INVALID_KEY))
    with pytest.raises(StorageError, match="refuses it"):
        s3.root.list()
    with pytest.raises(StorageError, match=r"no option 'regoin'.*did you mean 'region'"):
        Location.parse("s3://bucket/a?regoin=x").exists()
    assert not waits


def test_the_endpoint_may_stand_in_the_environment(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3.endpoint.port}")
    file = Location.parse(f"s3://{s3.bucket}/file")
    file.write_bytes(b"there")
    assert (s3.root / "file").read_bytes() == b"there"


def test_an_object_replaced_during_a_download_is_not_mixed(
    s3: S3, waits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.storage.remote.READ_BYTES", 150_000)
    file = s3.root / "file"
    file.write_bytes(BYTES)
    newer = random.Random(2).randbytes(len(BYTES))
    gets = 0

    def replace(method: str, path: str) -> None:
        nonlocal gets
        gets += method == "GET"
        if method == "GET" and gets == 2:
            time.sleep(max(0.0, 1.01 - time.time() % 1))  # S3 counts whole seconds
            file.write_bytes(newer)

    s3.endpoint.before = replace
    file.download(tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == newer
    assert "replaced while it was being read" in waits[0]


def test_waits_double_and_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("shoal.storage.retry.time.sleep", slept.append)
    failures = iter(range(6))

    def action() -> str:
        if next(failures, None) is not None:
            raise TransientError("away")
        return "answer"

    with patience(Patience(total_sec=1000, first_sec=1, most_sec=8, on_wait=lambda text: None)):
        assert until_it_answers(action, "x") == "answer"
    for wait, middle in zip(slept, (1, 2, 4, 8, 8, 8), strict=True):
        assert 0.5 * middle <= wait <= 1.5 * middle
    assert len({wait / middle for wait, middle in zip(slept, (1, 2, 4, 8, 8, 8), strict=True)}) == 6


def test_bugs_are_not_tried_again() -> None:
    calls = []

    def action() -> None:
        calls.append(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        until_it_answers(action, "x")
    assert len(calls) == 1
