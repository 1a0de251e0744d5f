"""Encoded data sets."""

import io
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.data.encoded import encode, write

from shoal.data import DataSet
from shoal.data.decoder import DecodeError, PillowDecoder
from shoal.errors import DamagedBlockError

ROWS = 37
Images = NDArray[np.uint8]


@pytest.fixture(scope="session")
def colour() -> Images:
    """37 images [H, W, C] of 12x16 pixels."""
    return np.random.default_rng(0).integers(0, 256, (ROWS, 12, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("processors", [1, 3])
def test_any_rows_of_png_and_jpeg(
    tmp_path: Path, colour: Images, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(processors)))
    files = [encode(each, "JPEG" if i % 3 == 0 else "PNG") for i, each in enumerate(colour)]
    expected = np.stack([np.asarray(Image.open(io.BytesIO(file))).transpose(2, 0, 1) for file in files])
    dataset = DataSet.open(write(tmp_path / "set", files, (3, 12, 16)))
    assert np.array_equal(dataset.rows("all", 0, ROWS), expected)
    ids = np.random.default_rng(1).integers(0, ROWS, 100)
    out = np.zeros((100, 3, 12, 16), np.uint8)
    assert dataset.fetch(ids, out) is out
    assert np.array_equal(out, expected[ids])
    assert dataset.fetch(np.empty(0, np.int64)).shape == (0, 3, 12, 16)


def test_grey(tmp_path: Path, colour: Images) -> None:
    grey = colour[..., 0]
    dataset = DataSet.open(write(tmp_path / "set", [encode(each) for each in grey], (1, 12, 16)))
    assert np.array_equal(dataset.rows("all", 0, ROWS), grey[:, None])


def test_a_decoder_of_ones_own(tmp_path: Path) -> None:
    class Constant:
        def decode(self, file: Images, out: Images) -> None:
            out[:] = file[0]

    dataset = DataSet.open(write(tmp_path / "set", [bytes([i]) * (i + 1) for i in range(25)], (1, 2, 2)))
    dataset.decoder = Constant()
    assert dataset.rows("all", 0, 25)[:, 0, 1, 1].tolist() == list(range(25))


def _orientation(number: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif.tobytes()


@pytest.mark.parametrize(
    ("make", "channels", "expected"),
    [
        (lambda rgb: encode(rgb[..., 0]), 3, lambda rgb: rgb[..., :1].repeat(3, 2)),
        (lambda rgb: encode((rgb[..., 0].astype(np.uint16)) * 257), 1, lambda rgb: rgb[..., :1]),
        (lambda rgb: encode(rgb.transpose(1, 0, 2)[:, ::-1], exif=_orientation(8)), 3, lambda rgb: rgb),
        (lambda rgb: encode(np.dstack([rgb, np.zeros((12, 16), np.uint8)])), 3, lambda rgb: np.full_like(rgb, 255)),
        (lambda rgb: encode(rgb[..., 0] > 127), 1, lambda rgb: (rgb[..., :1] > 127) * np.uint8(255)),
    ],
    ids=["grey to RGB", "16 bits", "a camera held upright", "transparent", "black and white"],
)
def test_what_is_converted(
    colour: Images, make: Callable[[Images], bytes], channels: int, expected: Callable[[Images], Images]
) -> None:
    out = np.zeros((channels, 12, 16), np.uint8)
    PillowDecoder().decode(np.frombuffer(make(colour[0]), np.uint8), out)
    assert np.array_equal(out, expected(colour[0]).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (lambda rgb: b"", "is not a PNG or JPEG"),
        (lambda rgb: b"GIF89a", "is not a PNG or JPEG"),
        (lambda rgb: encode(rgb)[:-60], "."),
        (lambda rgb: encode(rgb)[:20], "."),
        (lambda rgb: encode(rgb, "JPEG")[:-60], "truncated"),
        (lambda rgb: encode(rgb[:, :8]), "is 12x8 pixels where the data set has 12x16"),
        (lambda rgb: encode(rgb.transpose(1, 0, 2)), "is 16x12 pixels where the data set has 12x16"),
    ],
)
def test_a_file_that_is_not_a_row(
    tmp_path: Path, colour: Images, file: Callable[[Images], bytes], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = file(colour[0])
    with pytest.raises(DecodeError, match=why):
        PillowDecoder().decode(np.frombuffer(bad, np.uint8), np.zeros((3, 12, 16), np.uint8))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    files = [encode(each) for each in colour]
    files[23] = files[29] = bad
    dataset = DataSet.open(write(tmp_path / "set", files, (3, 12, 16)))
    with pytest.raises(
        DamagedBlockError, match=r"block 2 of shard-00000.arrow \(rows 20 to 29\) .* for row 23"
    ) as caught:
        dataset.rows("all", 0, ROWS)
    assert (caught.value.block, caught.value.first_row, caught.value.rows) == (2, 20, 10)
    assert dataset.rows("all", 0, 20).shape == (20, 3, 12, 16)


def test_every_changed_byte_of_a_block_is_found(tmp_path: Path, colour: Images) -> None:
    folder = write(tmp_path / "set", [encode(each) for each in colour[:4]], (3, 12, 16), rows_per_block=2)
    shard = folder / "shard-00000.arrow"
    right = shard.read_bytes()
    reader = pa.ipc.open_file(pa.py_buffer(right))
    _, offsets, content = reader.get_batch(1).column(0).buffers()
    expected = DataSet.open(folder).rows("all", 0, 4)
    for buffer in (offsets, content):
        at = right.rindex(buffer.to_pybytes())
        for position in range(at, at + len(buffer), 7):
            shard.write_bytes(right[:position] + bytes([right[position] ^ 16]) + right[position + 1 :])
            dataset = DataSet.open(folder)
            with pytest.raises(DamagedBlockError, match=r"block 1 of shard-00000.arrow \(rows 2 to 3\)"):
                dataset.rows("all", 2, 3)
            assert np.array_equal(dataset.rows("all", 0, 2), expected[:2])


def test_decodes_in_a_forked_child(tmp_path: Path, colour: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    dataset = DataSet.open(write(tmp_path / "set", [encode(each) for each in colour], (3, 12, 16)))
    expected = dataset.rows("all", 0, ROWS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking a process that has threads
        child = os.fork()
    if child == 0:
        signal.alarm(60)  # not to wait for ever for threads that it does not have
        os._exit(0 if np.array_equal(dataset.rows("all", 0, ROWS), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
