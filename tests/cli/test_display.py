"""What a terminal or a log shows of a run, and that nothing it meets can end the run."""

import errno
import io
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shoal.config import read_config
from shoal.run import Run
from shoal_ray import display as display_module
from shoal_ray.display import Display, Tail


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "[red]x[bold]:cat:", read_config("seed-autoencoder"), tmp_path / "data")


def add(run: Run, samples: int, **more: object) -> None:
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"samples": samples, "speed/samples_per_sec": 100.0, "loss/mse": 0.5, **more}) + "\n")


def terminal(file: io.StringIO) -> Console:
    return Console(file=file, force_terminal=True, width=400, color_system=None)


def drawn(display: Display) -> str:
    file = io.StringIO()
    Console(file=file, width=400).print(display._render())
    return file.getvalue()


def test_a_tail_gives_whole_rows_once(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    tail = Tail(path)
    assert tail.new_rows() == []
    path.write_text('{"a": 1}\n{"a": 2')
    assert tail.new_rows() == [{"a": 1}]
    assert tail.new_rows() == []
    with path.open("a") as file:
        file.write("}\n")
    assert tail.new_rows() == [{"a": 2}]
    assert Tail(path, skip_existing=True).new_rows() == []


def test_a_tail_begins_again_where_the_file_was_replaced_or_cut(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    tail = Tail(path)
    tail.new_rows()
    (tmp_path / "new").write_text('{"b": 1}\n{"b": 2}\n{"b": 3}\n')
    (tmp_path / "new").replace(path)
    assert tail.new_rows() == [{"b": 1}, {"b": 2}, {"b": 3}]
    os.truncate(path, 0)
    with path.open("a") as file:
        file.write('{"c": 1}\n')
    assert tail.new_rows() == [{"c": 1}]


def test_a_tail_passes_over_what_it_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b'{"a": 1}\n{"a"\n\xff\xfe\n\0\0\n[1]\n\n{"a": 2}\n')
    assert Tail(path).new_rows() == [{"a": 1}, {"a": 2}]
    assert Tail(tmp_path).new_rows() == []
    assert Tail(path / "below").new_rows() == []


def test_it_says_starting_until_the_first_row_and_again_when_workers_are_lost(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    display = Display(run, terminal(io.StringIO()), 0)
    display.refresh()
    now += 7
    assert "starting (7 s)" in drawn(display)  # without another look
    assert "none yet (7 s)" in drawn(display)
    add(run, 500)
    display.refresh()
    assert "starting" not in drawn(display)
    for part in ("500/", "100/s", "loss/mse", "[red]x[bold]:cat:"):
        assert part in drawn(display)
    (run.path / "images").mkdir()
    (run.path / "images" / "samples-000000000500.png").write_bytes(b"")
    display.refresh()
    assert str(run.path / "images" / "samples-000000000500.png") in drawn(display)
    (run.path / "failures.jsonl").write_text('{"workers": {"1": "[b]gone. And more"}}\n{"workers": 3}\n{}\n')
    display.refresh()
    now += 2
    assert "starting (2 s)" in drawn(display)


def test_a_lost_worker_is_told_as_it_is(run: Run) -> None:
    file = io.StringIO()
    with Display(run, Console(file=file, width=40), 0) as display:
        (run.path / "failures.jsonl").write_text('{"workers": {"1": "[b]gone :cat:. And more"}}\n')
        display.refresh()
    assert "workers lost (rank 1: [b]gone :cat:); starting again from the newest checkpoint\n" in file.getvalue()


def test_rows_without_sense_are_passed_over(run: Run) -> None:
    file = io.StringIO()
    with Display(run, Console(file=file), 0) as display:
        (run.path / "metrics.jsonl").write_text('{}\n{"samples": "x"}\n3\n')
        add(run, 500, note="[b]", **{"speed/samples_per_sec": None})
        display.refresh()
    assert file.getvalue().startswith("samples 500/")
    assert "[b]" not in file.getvalue()


def test_rows_from_before_a_resume_are_not_shown_as_new(run: Run) -> None:
    add(run, 500)
    display = Display(run, terminal(io.StringIO()), 400)
    display.refresh()
    assert "starting" in drawn(display)
    assert "400/" in drawn(display)


@pytest.mark.parametrize("late", [True, False], ids=["midway", "at once"])
@pytest.mark.parametrize("live", [True, False], ids=["terminal", "log"])
@pytest.mark.parametrize(
    "trouble",
    [BrokenPipeError(errno.EPIPE, "gone"), OSError(errno.EIO, "hung up"), SystemExit(141)],
    ids=["pipe", "terminal", "exit"],
)
def test_it_falls_silent_where_nobody_reads(
    run: Run, live: bool, late: bool, trouble: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    monkeypatch.setattr(display_module, "PLAIN_EVERY_SEC", 0.0)

    class Reader(io.StringIO):
        gone = not late

        def write(self, text: str) -> int:
            if self.gone:
                raise trouble
            return super().write(text)

    def end(console: Console) -> None:  # as rich does, but for closing the standard output of the tests
        console.quiet = True
        raise SystemExit(1)

    monkeypatch.setattr(Console, "on_broken_pipe", end)
    reader = Reader()
    console = Console(file=reader, force_terminal=live)
    with Display(run, console, 0) as display:
        add(run, 500)
        display.refresh()
        reader.gone = True
        add(run, 1000)
        display.refresh()
        display.note("first")
        assert console.quiet
        reader.gone = False
        add(run, 1500)
        display.refresh()
        display.note("second")
    assert "second" not in reader.getvalue()
    assert ("500" in reader.getvalue()) is (late and not live)


def test_time_goes_on_between_two_looks(run: Run) -> None:
    file = io.StringIO()
    seen = wait_for(lambda: "starting (1 s)" in file.getvalue())
    with Display(run, terminal(file), 0):
        assert seen()


def wait_for(condition: Callable[[], Any]) -> Callable[[], bool]:
    def wait() -> bool:
        until = time.monotonic() + 30
        while not condition() and time.monotonic() < until:
            time.sleep(0.05)
        return bool(condition())

    return wait
