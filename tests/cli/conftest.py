import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from shoal.data.write import write_dataset
from shoal_ray.cli import main

TINY = (
    "nets.hidden=[8]",
    "nets.latent=3",
    "batch=16",
    "duration_samples=320",
    "report.every_samples=32",
    "report.images_every_samples=160",
    "checkpoint.every_samples=80",
)


@dataclass(frozen=True)
class Said:
    """What a command printed, and how it ended."""

    code: int
    out: str
    error: str


Shoal = Callable[..., Said]


@pytest.fixture
def shoal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shoal:
    """Run the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["shoal", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, error = capsys.readouterr()
        assert "Traceback" not in out + error
        return Said(code, out, error)

    return run


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 + 32 grey images of 28x28, in blocks of 16 and several shards."""
    path = tmp_path_factory.mktemp("cli") / "data"
    images = np.random.default_rng(0).integers(0, 256, (96, 1, 28, 28), dtype=np.uint8)
    write_dataset(
        path,
        {"train": [(images[:64], None)], "test": [(images[64:], None)]},
        shape=(1, 28, 28),
        class_names=None,
        source="test",
        rows_per_block=16,
        shard_bytes=2 * 16 * 784,
    )
    return path


@pytest.fixture
def data(pristine: Path, tmp_path: Path) -> Path:
    """Return a copy to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "data"))


@pytest.fixture
def tiny() -> Sequence[str]:
    return TINY


@pytest.fixture
def trained(shoal: Shoal, data: Path, tmp_path: Path) -> Path:
    """Return a finished tiny run, trained without Ray."""
    said = shoal("train", "seed-autoencoder", *TINY, "--data", data, "--out", tmp_path / "run", "--local")
    assert said.code == 0, said.error
    return tmp_path / "run"
