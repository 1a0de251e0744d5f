"""Imports that are killed or interrupted: what is left, who goes on from it, and that nothing is lost."""

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.data.generated_source import Generated, environment

from shoal.data import DataSet
from shoal.data.importers import run_import
from shoal.data.importers.partial import Command
from shoal.data.importers.reading import ReaderLostError
from shoal.data.importers.splitting import Shares
from shoal.errors import DataError

SOURCE = Generated({"train": 100, "test": 31})
SHARES = Shares({"train": 0.8, "val": 0.2})
COMMAND = Command("generated", "/somewhere", {}, {"files": 1})
SMALL: dict[str, Any] = {"rows_per_block": 4, "shard_bytes": 160}
"""Two blocks in a shard."""


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def interrupt(out: Path, source: Generated = SOURCE, after: int = 60, **options: Any) -> list[str]:
    """Import until that many images are done, then interrupt; return what the user was told."""
    said: list[str] = []

    def stop(done: int, total: int | None) -> None:
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_import(source, out, **{"command": COMMAND, **SMALL, **options}, progress=stop, notice=said.append)
    return said


@pytest.mark.parametrize(("jobs", "encoded"), [(1, False), (2, True)])
def test_an_interrupted_import_goes_on(tmp_path: Path, jobs: int, encoded: bool) -> None:
    source = Generated(SOURCE.rows, encoded=encoded)
    options: dict[str, Any] = {"split": SHARES, "limit": 80, "jobs": jobs, "command": COMMAND, **SMALL}
    options["shard_bytes"] = 40 if encoded else 160
    run_import(source, tmp_path / "whole", **{**options, "jobs": 1})
    for after in (20, 60):
        said = interrupt(tmp_path / "set", source, after, **options)
        assert names(tmp_path) == [".set.partial", "whole"]
        assert "images are kept in" in said[-1]
        assert ".set.partial: the same command goes on from there, --fresh starts anew" in said[-1]
    said, seen = [], []
    run_import(source, tmp_path / "set", **options, notice=said.append, progress=lambda *done: seen.append(done[0]))
    assert "going on from the" in said[0]
    assert seen[0] >= 50
    assert files(tmp_path / "set") == files(tmp_path / "whole")
    assert names(tmp_path) == ["set", "whole"]


def test_an_interruption_before_the_first_shard_leaves_nothing(tmp_path: Path) -> None:
    assert interrupt(tmp_path / "set", after=3) == []
    assert names(tmp_path) == []


def test_a_source_that_could_be_another_is_not_gone_on_with(tmp_path: Path) -> None:
    assert interrupt(tmp_path / "set", command=None) == []
    assert names(tmp_path) == []


def test_another_command_is_refused_unless_fresh(tmp_path: Path) -> None:
    interrupt(tmp_path / "set")
    others = {
        r"by another command \(then limit=None; now limit=5\); give that command": replace(
            COMMAND, options={"limit": 5}
        ),
        r"then src=/somewhere; now src=/elsewhere": replace(COMMAND, src="/elsewhere"),
        r"of /somewhere, which has changed since; add --fresh": replace(COMMAND, identity={"files": 2}),
    }
    for message, other in others.items():
        with pytest.raises(DataError, match=message):
            run_import(SOURCE, tmp_path / "set", command=other, **SMALL)
    with pytest.raises(DataError, match=r"broken off: .*.set.partial holds \d+ images of /somewhere; add --fresh"):
        run_import(SOURCE, tmp_path / "set", **SMALL)
    assert names(tmp_path) == [".set.partial"]
    run_import(Generated({"train": 9}), tmp_path / "set", command=other, fresh=True, **SMALL)
    assert DataSet.open(tmp_path / "set").splits == {"train": 9}
    assert names(tmp_path) == ["set"]


def test_two_at_once(tmp_path: Path) -> None:
    def another(done: int, total: int | None) -> None:
        with pytest.raises(DataError, match=r"another process is importing into .*/set; wait for it"):
            run_import(SOURCE, tmp_path / "set", command=COMMAND, fresh=True)

    run_import(SOURCE, tmp_path / "set", command=COMMAND, progress=another)
    assert names(tmp_path) == ["set"]


@pytest.mark.parametrize("damage", ["shard", "journal", "all"])
def test_a_damaged_left_over_is_started_anew(tmp_path: Path, damage: str) -> None:
    run_import(SOURCE, tmp_path / "whole", command=COMMAND, **SMALL)
    interrupt(tmp_path / "set")
    partial = tmp_path / ".set.partial"
    if damage == "shard":
        max((partial / "data").glob("*.part")).unlink()
    elif damage == "journal":
        (partial / "progress.jsonl").write_bytes(b"\0\0\0")
    else:
        for file in (partial / "data").iterdir():
            file.unlink()
        (partial / "data").rmdir()
    run_import(SOURCE, tmp_path / "set", command=COMMAND, **SMALL)
    assert files(tmp_path / "set") == files(tmp_path / "whole")


def test_a_cut_off_line_is_not_read(tmp_path: Path) -> None:
    run_import(SOURCE, tmp_path / "whole", command=COMMAND, **SMALL)
    interrupt(tmp_path / "set")
    with (tmp_path / ".set.partial" / "progress.jsonl").open("ab") as file:
        file.write(b'{"place":{"unit":17')
    said: list[str] = []
    run_import(SOURCE, tmp_path / "set", command=COMMAND, notice=said.append, **SMALL)
    assert "going on" in said[0]
    assert files(tmp_path / "set") == files(tmp_path / "whole")


def test_a_killed_reader_is_named_and_gone_on_from(tmp_path: Path) -> None:
    (tmp_path / "tell").mkdir()
    source = Generated(SOURCE.rows, tell=tmp_path / "tell", dies_at=12)
    with pytest.raises(ReaderLostError, match=r"was ended by SIGKILL; .* fewer --jobs .*; \d+ images are kept in"):
        run_import(source, tmp_path / "set", jobs=2, command=COMMAND, **SMALL)
    run_import(source, tmp_path / "set", jobs=2, command=COMMAND, **SMALL)
    run_import(SOURCE, tmp_path / "whole", command=COMMAND, **SMALL)
    assert files(tmp_path / "set") == files(tmp_path / "whole")
    assert gone(tmp_path / "tell")


def test_a_reader_that_dies_at_once_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "tell").mkdir()
    with pytest.raises(ReaderLostError, match="was ended by SIGKILL"):
        run_import(Generated(SOURCE.rows, tell=tmp_path / "tell", dies_at=0), tmp_path / "set", jobs=2, command=COMMAND)
    assert names(tmp_path) == ["tell"]


def gone(tell: Path) -> bool:
    """Wait until all readers that left their number there have ended."""
    numbers = [int(name) for name in names(tell) if name.isdigit()]
    assert numbers
    for number in numbers:
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(number)
            assert select.select([handle], [], [], 60)[0]
            os.close(handle)
    return True


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_reader_outlives_the_import(tmp_path: Path, how: signal.Signals) -> None:
    (tmp_path / "tell").mkdir()
    script = f"""
import os, sys
from pathlib import Path
from shoal.data.importers import run_import
from generated_source import Generated
def stop(done, total):
    if done > 50:
        os.kill(os.getpid(), {int(how)})
source = Generated({{"train": 10000}}, tell=Path({str(tmp_path / "tell")!r}))
run_import(source, Path({str(tmp_path / "set")!r}), jobs=3, progress=stop)
"""
    ended = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, timeout=120)
    assert ended.returncode == -how, ended.stderr.decode()
    assert gone(tmp_path / "tell")


def test_a_kill_at_any_step_loses_nothing(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_imports.py")
    ended = subprocess.run([sys.executable, script, tmp_path], env=environment(), capture_output=True, timeout=300)
    assert ended.returncode == 0, ended.stdout.decode() + ended.stderr.decode()
    steps, resumed = map(int, ended.stdout.split()[-2:])
    assert steps > 60
    assert resumed > 40
