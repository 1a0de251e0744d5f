"""What a run's URI holds at every moment: no checkpoint without the rows that lead to it, and none of them lost."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest
from tests.storage.s3 import S3
from tests.writers import STEP, tick_at, wait_for, writing

from shoal import uploader
from shoal.config import RunConfig
from shoal.errors import FencedError
from shoal.incarnation import begin
from shoal.remote_checkpoint import names, samples_of
from shoal.run import Run
from shoal.run_writer import RunWriter
from shoal.storage.location import Location
from shoal.world import World


class Home:
    """A run's URI as it is seen past the proxy, which the writers go through.

    Attributes:
        place: what the writers are told.
        led_to: of every checkpoint, by its clock, the clocks of the rows that were there when it appeared.
        meanwhile: carried out once, while the tensors of a checkpoint are on their way.
    """

    def __init__(self, s3: S3) -> None:
        self.place = s3.root / "run"
        self._direct = Location.parse(str(self.place).replace(str(s3.endpoint.port), str(s3.endpoint.target)))
        self._direct.files()  # now: Arrow opens no other store while a request is under way
        self.led_to: dict[int, list[int]] = {}
        self.meanwhile: Callable[[], None] | None = None
        s3.endpoint.before = self._look

    def rows(self) -> list[int]:
        return [json.loads(line)["samples"] for line in self.content().splitlines()]

    def content(self) -> bytes:
        return (self._direct / "metrics.jsonl").read_bytes()

    def put_back(self, content: bytes) -> None:
        (self._direct / "metrics.jsonl").write_bytes(content)

    def newest(self) -> int:
        return max(map(samples_of, names((self._direct / "checkpoints").files())), default=0)

    def take_back(self, samples: int) -> None:
        """Make as if a checkpoint had not arrived when its node was lost."""
        (newest, *_) = names((self._direct / "checkpoints").files())
        assert samples_of(newest) == samples
        (self._direct / "checkpoints" / newest / "state.json").delete()

    def _look(self, method: str, path: str) -> None:
        file = path.partition("?")[0]
        if method in ("PUT", "POST") and "/checkpoints/" in file:
            if file.endswith("tensors.safetensors") and (meanwhile := self.meanwhile):
                self.meanwhile = None
                meanwhile()
            if file.endswith("state.json"):
                self.led_to[samples_of(file.split("/")[-2])] = self.rows()


@pytest.fixture
def home(s3: S3) -> Iterator[Home]:
    """Return the URI of a run."""
    yield Home(s3)
    s3.endpoint.before = lambda method, path: None


@pytest.fixture
def on_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return ``on_node(name)``: be on this node from now on."""
    monkeypatch.setattr(uploader, "PAUSE_SEC", 0.01)
    return lambda name: monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / name))


@pytest.fixture
def run(home: Home, tiny: Callable[..., RunConfig], small_data: Path, on_node: Callable[[str], None]) -> Run:
    """Return a run at a URI, made on node ``a``."""
    on_node("a")
    return Run.create(home.place, tiny("autoencoder"), small_data)


def local_rows(run: Run) -> list[int]:
    return [row["samples"] for row in run.metrics()]


def written_twice(run: Run, home: Home) -> bytes:
    """Write two checkpoints, and leave the URI without the row of the second; return the rows that it has."""
    with writing(run) as (_, writer):
        writer.record(tick_at(run, STEP))
        wait_for(lambda: home.newest() == STEP)
        before = home.content()
        writer.record(tick_at(run, 2 * STEP))
    home.put_back(before)
    return before


def test_a_checkpoint_that_was_written_while_another_one_was_sent_comes_after_its_rows(run: Run, home: Home) -> None:
    on_its_way, go_on = Event(), Event()

    def take_long() -> None:
        on_its_way.set()
        assert go_on.wait(60)

    home.meanwhile = take_long
    with writing(run) as (_, writer):
        writer.record(tick_at(run, STEP))
        assert on_its_way.wait(60)
        writer.record(tick_at(run, 2 * STEP))
        writer.finish()
        go_on.set()
        wait_for(lambda: home.newest() == 2 * STEP)
    assert home.led_to == {STEP: [STEP], 2 * STEP: [STEP, 2 * STEP]}


def test_one_that_only_the_copy_has_comes_after_its_rows_when_a_run_goes_on(run: Run, home: Home) -> None:
    written_twice(run, home)
    home.take_back(2 * STEP)
    home.led_to.clear()
    with writing(Run.open(home.place, writes=True)) as (samples, _):
        assert samples == 2 * STEP
    assert home.led_to == {2 * STEP: [STEP, 2 * STEP]}


def test_rows_that_did_not_reach_the_uri_are_kept_where_they_lead_to_its_checkpoint(run: Run, home: Home) -> None:
    written_twice(run, home)
    again = Run.open(home.place, writes=True)
    with writing(again) as (samples, writer):
        assert (samples, local_rows(again)) == (2 * STEP, [STEP, 2 * STEP])
        writer.record(tick_at(run, 3 * STEP))
    assert home.rows() == [STEP, 2 * STEP, 3 * STEP]


def test_rows_of_steps_that_another_node_took_again_are_not_kept(
    run: Run, home: Home, on_node: Callable[[str], None]
) -> None:
    before = written_twice(run, home)
    home.take_back(2 * STEP)
    on_node("b")
    with writing(other := Run.open(home.place, writes=True)) as (samples, writer):
        assert samples == STEP
        writer.record(tick_at(other, 2 * STEP))
    home.put_back(before)
    on_node("a")
    again = Run.open(home.place, writes=True)
    assert local_rows(again) == [STEP, 2 * STEP]
    with writing(again) as (samples, _):
        assert (samples, local_rows(again)) == (2 * STEP, [STEP])


NO_TEXT = os.fsdecode(b"\xff.png")
"""A name that a disk takes and no store does."""


def test_what_nobody_has_thought_of_ends_a_run_and_what_is_mended_by_then_is_sent(run: Run, home: Home) -> None:
    with writing(run) as (_, writer):
        (run.path / NO_TEXT).write_text("")
        writer.record(tick_at(run, STEP))
        writer.finish()
        wait_for(lambda: refuses(writer))
        (run.path / NO_TEXT).unlink()
    assert (home.newest(), home.rows()) == (STEP, [STEP])


def refuses(writer: RunWriter) -> bool:
    try:
        writer.refuse_trouble()
    except UnicodeEncodeError:
        return True
    return False


def test_what_nobody_has_thought_of_at_the_end_is_no_good_end(run: Run, home: Home) -> None:
    def write() -> None:
        with writing(run) as (_, writer):
            writer.record(tick_at(run, STEP))
            writer.finish()
            wait_for(lambda: home.newest() == STEP)
            (run.path / NO_TEXT).write_text("")

    with pytest.raises(UnicodeEncodeError):
        write()


def test_who_hung_before_it_began_anew_deletes_nothing_of_who_has_the_run_now(
    run: Run, home: Home, on_node: Callable[[str], None]
) -> None:
    late = begin(run, World.local("cpu"))
    assert late.hold_at_home is not None
    on_node("b")
    with writing(Run.open(home.place, writes=True)):
        (home.place / "tensorboard" / "events").write_bytes(b"of the new owner")
        with pytest.raises(FencedError):
            uploader.Uploader(run, late.samples, late.hold_at_home)
        assert (home.place / "tensorboard").files() == {"events": len(b"of the new owner")}
