"""Two nodes that write one run at a URI, of which the first is cut off at any request, and heard again later."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from threading import Event

import pytest
from tests.storage.faulty import FaultyEndpoint
from tests.storage.s3 import S3
from tests.writers import STEP, record, tensors_at, tick_at, wait_for, writing

from shoal import uploader
from shoal.checkpoint_names import Name
from shoal.config import RunConfig
from shoal.errors import FencedError
from shoal.execute import execute
from shoal.loop import Tick
from shoal.remote_checkpoint import find, names, samples_of
from shoal.run import Run
from shoal.run_files import read_ended
from shoal.storage.location import Location
from shoal.world import World

Tiny = Callable[..., RunConfig]
Differing = Callable[..., list[str]]


class Node:
    """A machine: a run as it is seen from there, through a proxy of its own, and a folder for the copy.

    From a moment on it can be cut off: the next request but so many, and all after it, are held back until it is heard.
    """

    def __init__(self, s3: S3, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._endpoint = FaultyEndpoint(s3.endpoint.target)
        there, here = (f"127.0.0.1:{port}" for port in (s3.endpoint.port, self._endpoint.port))
        self.home = Location.parse(str(s3.root / name).replace(there.replace(":", "%3A"), here.replace(":", "%3A")))
        assert str(self._endpoint.port) in str(self.home)
        self._folder, self._monkeypatch = folder, monkeypatch
        self._left: int | None = None
        self.cut_off, self._heard = Event(), Event()
        self._endpoint.before = self._pass
        self.home.files()  # now: Arrow opens no other store while a request is under way

    def cut_off_after(self, requests: int) -> None:
        self._left = requests

    def hear(self) -> None:
        self._heard.set()

    def create(self, config: RunConfig, data: Path) -> Run:
        self._monkeypatch.setenv("SHOAL_CACHE", str(self._folder))
        return Run.create(self.home, config, data)

    def open(self) -> Run:
        self._monkeypatch.setenv("SHOAL_CACHE", str(self._folder))
        return Run.open(self.home, writes=True)

    def end(self) -> None:
        self._endpoint.away()

    def _pass(self, method: str, path: str) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left < 0 and not self._heard.is_set():
                self.cut_off.set()
                self._heard.wait(60)


def kept(home: Location) -> list[int]:
    """Return the clocks of the checkpoints that count and are there, the newest first."""
    return [samples_of(name) for name in names((home / "checkpoints").files())]


def newest(home: Location) -> int:
    return next(iter(kept(home)), 0)


def contents(folder: Location) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in folder.files()}


def test_who_is_cut_off_at_any_request_and_heard_later_changes_nothing_newer(
    s3: S3, tiny: Tiny, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, differing: Differing
) -> None:
    monkeypatch.setattr(uploader, "PAUSE_SEC", 0.01)
    config = tiny("autoencoder", "checkpoint.keep=2")
    for number in count():
        first, second = (Node(s3, f"run-{number}", tmp_path / str(number) / name, monkeypatch) for name in "ab")
        try:
            if not taken_over(first.create(config, small_data), first, second, number):
                break
            found = find(second.home / "checkpoints", tmp_path / str(number) / "c").checkpoint
            assert found is not None
            assert found.epoch == 2
            assert differing(found.tensors(), tensors_at(found.samples)) == []
        finally:
            first.end()
            second.end()
    assert number > 10


def taken_over(run: Run, first: Node, second: Node, number: int) -> bool:
    """Cut the first node off at a request of its fourth tick, let the second one go on, and hear the first one again.

    Returns:
        Whether there was such a request.
    """
    home, before = second.home, dict[str, bytes]()
    try:
        with writing(run) as (_, writer):
            for samples in (STEP, 2 * STEP, 3 * STEP):
                record(writer, tick_at(run, samples))
                wait_for(lambda: newest(home) == samples)  # noqa: B023  # waited for in this very round
            first.cut_off_after(number)
            record(writer, tick_at(run, 4 * STEP))
            wait_for(lambda: first.cut_off.is_set() or kept(home) == [4 * STEP, 3 * STEP])
            if not first.cut_off.is_set():
                first.hear()
                return False
            other = second.open()
            with writing(other) as (began, another):
                assert began in (3 * STEP, 4 * STEP)
                for samples in range(began + STEP, began + 4 * STEP, STEP):
                    record(another, tick_at(other, samples))
            before = contents(home / "checkpoints")
            assert newest(home) == began + 3 * STEP
            first.hear()
    except FencedError:
        pass
    else:
        pytest.fail("it was not told that it has lost the run")
    after = contents(home / "checkpoints")
    assert {name: after.get(name) for name in before} == before
    # What it still sent is of its own epoch, and counts for nobody.
    assert {name.partition("/")[0] for name in after.keys() - before.keys()} <= {str(Name(4 * STEP))}
    assert newest(home) == began + 3 * STEP
    return True


def test_how_a_run_ended_is_told_by_the_node_that_had_it_last(
    s3: S3, tiny: Tiny, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was cut off is told so, or takes itself for finished: its copy shows it no claim of another node."""
    oldest, first, second = (Node(s3, "run", tmp_path / name, monkeypatch) for name in "abc")
    run, told = oldest.create(tiny("autoencoder"), small_data), list[dict[str, object]]()

    def go_on_elsewhere(tick: Tick) -> None:
        if tick.samples == 100:
            execute(second.open(), World.local("cpu"))
            told.append(read_ended(second.home))

    try:
        with writing(run) as (_, late):
            with pytest.raises(FencedError):
                execute(first.open(), World.local("cpu"), on_tick=go_on_elsewhere)
            assert (told[0]["how"], told[0]["epoch"]) == ("finished", 3)
            assert read_ended(second.home) == told[0]
    except FencedError:
        pass  # of the oldest, when it leaves
    late.end("finished", 0)
    assert read_ended(second.home) == told[0]
