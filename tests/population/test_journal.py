"""What is in a journal once ``append`` has returned, and what a kill can leave of it."""

import json
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import RunError
from shoal.run import read_rows
from shoal_ray.population.journal import Journal, events

ROWS: list[dict[str, Any]] = [
    {"event": "birth", "member": 0, "new": {"optim.lr": 1e-3}},
    {"event": "start", "member": 0, "note": "naïve \r\n line\u2028"},
    {"event": "death", "member": 0, "reason": None},
]
WHOLE = "".join(json.dumps(row) + "\n" for row in ROWS).encode()

ROW = st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=8), max_size=3)


def known(path: Path) -> list[dict[str, Any]]:
    """Return what a journal finds in a file."""
    with closing(Journal(path)) as journal:
        return [dict(row) for row in journal.rows]


def test_a_row_that_a_kill_cut_off_is_gone_and_the_next_one_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "lineage.jsonl"
    for cut in range(len(WHOLE) + 1):
        path.write_bytes(WHOLE[:cut])
        whole = ROWS[: WHOLE[:cut].count(b"\n")]
        with closing(Journal(path)) as journal:
            assert journal.rows == read_rows(path) == whole, cut
            journal.append({"event": "loaded"})
        assert read_rows(path) == known(path) == [*whole, {"event": "loaded"}], cut
        assert path.read_bytes().count(b"\n") == len(whole) + 1, cut


def test_a_journal_begins_where_there_is_no_file(tmp_path: Path) -> None:
    assert known(tmp_path / "new.jsonl") == []
    assert (tmp_path / "new.jsonl").read_bytes() == b""


def test_what_was_appended_is_in_the_file_before_append_returns(tmp_path: Path) -> None:
    path = tmp_path / "lineage.jsonl"
    with closing(Journal(path)) as journal:
        for count, row in enumerate(ROWS, 1):
            journal.append(row)
            assert read_rows(path) == journal.rows == ROWS[:count]


@pytest.mark.parametrize("damage", [b"\0" * 20, b"[1, 2]", b'{"event": "sta', b"", b"\xff{}"])
def test_a_damaged_row_in_the_middle_is_refused_and_nothing_is_thrown_away(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "lineage.jsonl"
    first, _, third = WHOLE.splitlines(keepends=True)
    damaged = first + damage + b"\n" + third
    path.write_bytes(damaged)
    with pytest.raises(RunError) as refused:
        Journal(path)
    assert str(refused.value) == (
        f"{path} is damaged at line 2 of 3: what follows would be lost; mend or remove that line"
    )
    assert path.read_bytes() == damaged
    path.write_bytes(first + third)
    assert known(path) == [ROWS[0], ROWS[2]]


def test_a_damaged_row_at_the_end_is_what_a_kill_left(tmp_path: Path) -> None:
    path = tmp_path / "lineage.jsonl"
    first, second, _ = WHOLE.splitlines(keepends=True)
    path.write_bytes(first + second + b"\0" * 20 + b"\n")
    assert known(path) == ROWS[:2]
    assert path.read_bytes() == first + second


@given(before=st.lists(ROW, max_size=4), after=st.lists(ROW, max_size=4))
@settings(max_examples=30)
def test_rows_survive_as_they_were_over_a_reopening(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        for rows in (before, after):
            with closing(Journal(path)) as journal:
                journal.append(*rows)
        assert known(path) == [*before, *after]


def test_events_are_those_of_a_name_in_order() -> None:
    rows: list[dict[str, Any]] = [
        {"event": "birth", "member": 1},
        {"member": 2},
        {"event": "death"},
        {"event": "birth", "member": 3},
    ]
    assert [row["member"] for row in events(rows, "birth")] == [1, 3]


def test_a_writer_waits_for_one_before_it_and_knows_all_that_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    held = "import sys; from shoal_ray.population.journal import Journal; from pathlib import Path\n"
    held += f"journal = Journal(Path({str(path)!r})); print(flush=True)\n"
    held += "for line in sys.stdin: journal.append({'line': line.strip()}); print(flush=True)\n"
    before = subprocess.Popen([sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert before.stdin is not None
    assert before.stdout is not None
    before.stdout.readline()
    opened: list[Journal] = []
    after = threading.Thread(target=lambda: opened.append(Journal(path)))
    after.start()
    print("late", file=before.stdin, flush=True)  # by a process that is to be replaced, and not yet gone
    before.stdout.readline()
    assert not opened
    before.kill()
    before.communicate()
    after.join(30)
    with closing(opened[0]) as journal:
        assert journal.rows == [{"line": "late"}]


def test_a_writer_that_does_not_end_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_ray.population.journal.PREDECESSOR_SEC", 0.0)
    with closing(Journal(tmp_path / "journal.jsonl")), pytest.raises(RunError, match="written by another process"):
        Journal(tmp_path / "journal.jsonl")
