"""Workers that wait for the first one's disk: each of them keeps telling that it is alive, and none waits in one go."""

from collections.abc import Callable
from pathlib import Path

from shoal import checkpoint
from shoal.run_files import read_ended

SCENARIO = Path(__file__).parent / "ranks" / "slow_disk.py"


def test_all_wait_by_rounds_for_the_last_checkpoint(
    small_data: Path, tmp_path: Path, launch_world: Callable[..., list[str]]
) -> None:
    launch_world(2, SCENARIO, small_data, tmp_path, "0")
    assert read_ended(tmp_path / "run")["how"] == "finished"
    assert [checkpoint.read(path).samples for path in checkpoint.saved(tmp_path / "run" / "checkpoints")] == [80]


def test_all_wait_by_rounds_for_the_checkpoint_before_the_next_one(
    small_data: Path, tmp_path: Path, launch_world: Callable[..., list[str]]
) -> None:
    launch_world(2, SCENARIO, small_data, tmp_path, "20")
    found = [checkpoint.read(path).samples for path in checkpoint.saved(tmp_path / "run" / "checkpoints")]
    assert found == [80, 60, 40]
