"""A run at a URI whose store refuses while all is well with this node's disk: what the user hears of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.storage.faulty import Fault
from tests.storage.s3 import S3

from shoal import storage_trouble
from shoal.config import RunConfig
from shoal.errors import StorageError
from shoal.execute import execute
from shoal.loop import Tick
from shoal.run import Run
from shoal.storage.retry import Patience, patience
from shoal.world import World

Tiny = Callable[..., RunConfig]


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_store_that_refuses_till_the_end_is_not_said_to_be_well(
    s3: S3, tiny: Tiny, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes_back: bool
) -> None:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    config = tiny("autoencoder", "duration_samples=1e6", "checkpoint.every_samples=0")
    run = Run.create(s3.root / "run", config, small_data)
    told: list[str] = []

    def go_away(tick: Tick) -> None:
        if tick.samples == 20:
            s3.endpoint.faults.append(Fault(1_000_000, status=503))

    def come_back() -> None:
        if comes_back and told and finished(run):
            s3.endpoint.faults.clear()

    monkeypatch.setattr(storage_trouble, "PATIENCE_AT_END_SEC", 60.0 if comes_back else 0.0)
    with patience(Patience(total_sec=0.2, first_sec=0.01, on_wait=lambda text: None)):
        try:
            execute(
                run,
                World.local("cpu"),
                should_stop=lambda: bool(told),
                on_tick=go_away,
                on_trouble=told.append,
                on_progress=come_back,
            )
        except StorageError:
            assert not comes_back
        else:
            assert comes_back
    assert ["can be written again" in text for text in told] == [False, True][: 1 + comes_back]


def finished(run: Run) -> bool:
    """Tell whether its last checkpoint is on this node's disk."""
    return any(run.checkpoints.glob("0*"))
