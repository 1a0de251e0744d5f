"""The log of lost workers, on a disk that is full for a while."""

from pathlib import Path

from shoal.run_files import readable_rows
from shoal_ray.cli.worker_table import restart_rows
from shoal_ray.failures import FailureLog

PAGE = 4096


def test_a_row_for_half_of_which_there_was_room_hides_no_later_one(small_disk: Path) -> None:
    run, ballast = small_disk / "run", small_disk / "ballast"
    run.mkdir()
    log = FailureLog(run / "failures.jsonl", 1)
    log.write({0: "before"})
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(PAGE))
        except OSError:
            file.truncate(file.tell() - PAGE)
    log.write({0: "in vain" * PAGE})
    assert (run / "failures.jsonl").stat().st_size == 2 * PAGE
    ballast.unlink()
    log.write({1: "after"})
    assert [row["workers"] for row in readable_rows(run / "failures.jsonl")] == [{"0": "before"}, {"1": "after"}]
    assert dict(restart_rows(run))["workers lost and replaced"] == "2"
