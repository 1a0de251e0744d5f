"""The same images in every format that readers.py reads, written once into a folder of their own."""

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module  # of packages that may not be there
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from shoal.data.dataset_writer import BLOCK_BYTES, SHARD_BYTES, DataSetWriter, Layout, seal

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

CLASSES = 10
JPEG_QUALITY = 90
JPEG_ROWS = 10_000
"""So many are stored as JPEG files too: decoding is slow, and a round reads a few thousand."""
SAMPLES_AT_ONCE = 1_000


@dataclass(frozen=True)
class Source:
    """Images, uint8 [n, C, H, W], with labels, int64 [n], and the folder in which they lie in several formats."""

    folder: Path
    images: Images
    labels: Labels

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def block_rows(self) -> int:
        """Rows to a block of Shoal's default size."""
        return max(1, BLOCK_BYTES // int(np.prod(self.shape)))

    def path(self, name: str) -> Path:
        """Return where a format lies; it is written the first time that it is asked for."""
        path = self.folder / name
        if not path.exists():
            partial_path = self.folder / f"{name}.partial"
            shutil.rmtree(partial_path, ignore_errors=True)
            partial_path.mkdir(parents=True)
            FORMATS[name](self, partial_path)
            partial_path.rename(path)
        return path


def generated(num: int, size: int) -> tuple[Images, Labels]:
    """Return images of smooth noise in three channels with a little of white noise, uint8 [num, 3, size, size].

    As JPEG they take about as much room as photographs of that size, a quarter of the pixels.
    """
    generator = torch.Generator().manual_seed(0)
    images = np.empty((num, 3, size, size), np.uint8)
    for start in range(0, num, SAMPLES_AT_ONCE):
        part = images[start : start + SAMPLES_AT_ONCE]
        coarse = torch.rand((len(part), 3, size // 8, size // 8), generator=generator) * 255
        smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
        part[:] = (smooth + 4 * torch.randn(smooth.shape, generator=generator)).clamp(0, 255).numpy()
    return images, np.arange(num) % CLASSES


def jpeg(image: Images) -> bytes:
    """Return an image, uint8 [C, H, W], as a JPEG file."""
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def write_shoal(source: Source, folder: Path, *, shard_bytes: int = SHARD_BYTES, encoded: bool = False) -> None:
    """Write a data set of Shoal."""
    names = [str(number) for number in range(CLASSES)]
    layout = Layout(source.shape, names, "readers.py", encoded=encoded, shard_bytes=shard_bytes)
    with DataSetWriter(folder, layout, ["train"]) as writer:
        for start in range(0, JPEG_ROWS if encoded else len(source.images), SAMPLES_AT_ONCE):
            part = slice(start, start + SAMPLES_AT_ONCE)
            images = source.images[part]
            writer.add("train", [jpeg(image) for image in images] if encoded else images, source.labels[part])
    seal(folder, layout, ["train"], writer.shards)


def write_parquet(source: Source, folder: Path) -> None:
    """Write one Parquet file: fixed_size_binary without compression, a row group as large as Shoal's blocks."""
    flat = source.images.reshape(len(source.images), -1)
    kind = pa.binary(flat.shape[1])
    column = pa.Array.from_buffers(kind, len(flat), [None, pa.py_buffer(flat)])
    pq.write_table(
        pa.table({"image": column, "label": source.labels}),
        folder / "data.parquet",
        row_group_size=source.block_rows,
        compression="none",
        use_dictionary=False,
    )


def write_blocks(source: Source, folder: Path) -> None:
    """Write blocks as .npy files, for Ray Data."""
    for number, start in enumerate(range(0, len(source.images), source.block_rows)):
        np.save(folder / f"{number:05d}.npy", source.images[start : start + source.block_rows])


def write_jpeg_folder(source: Source, folder: Path) -> None:
    """Write a folder of JPEG files for each class."""
    for number in range(CLASSES):
        (folder / str(number)).mkdir()
    for index in range(JPEG_ROWS):
        (folder / str(source.labels[index]) / f"{index:06d}.jpg").write_bytes(jpeg(source.images[index]))


def write_webdataset(source: Source, folder: Path) -> None:
    """Write tar files of JPEG files."""
    webdataset = import_module("webdataset")

    with webdataset.ShardWriter(f"{folder}/%05d.tar", maxsize=SHARD_BYTES, verbose=0) as sink:
        for index in range(JPEG_ROWS):
            sink.write({"__key__": f"{index:06d}", "jpg": jpeg(source.images[index]), "cls": int(source.labels[index])})


def write_mosaicml(source: Source, folder: Path) -> None:
    """Write shards of MosaicML Streaming."""
    streaming = import_module("streaming")

    columns = {"image": f"ndarray:uint8:{','.join(map(str, source.shape))}", "label": "int"}
    with streaming.MDSWriter(out=str(folder), columns=columns) as sink:
        for image, label in zip(source.images, source.labels, strict=True):
            sink.write({"image": image, "label": int(label)})


def write_litdata(source: Source, folder: Path) -> None:
    """Write chunks of litdata, by its own command."""
    litdata = import_module("litdata")

    np.savez(folder / "source.npz", images=source.images, labels=source.labels)
    litdata.optimize(
        fn=partial(_samples, folder / "source.npz", len(source.images)),
        inputs=list(range(0, len(source.images), SAMPLES_AT_ONCE)),
        output_dir=str(folder / "chunks"),
        chunk_bytes="64MB",
        num_workers=1,
        verbose=False,
    )
    (folder / "source.npz").unlink()


def _samples(path: Path, num: int, start: int) -> object:
    """Yield samples from ``start`` on."""
    with np.load(path) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    for index in range(start, min(start + SAMPLES_AT_ONCE, num)):
        yield {"image": torch.from_numpy(images[index].copy()), "label": int(labels[index])}


FORMATS: dict[str, Callable[[Source, Path], None]] = {
    "shoal": write_shoal,
    "shoal-a-shard-a-block": partial(write_shoal, shard_bytes=1),
    "shoal-jpeg": partial(write_shoal, encoded=True),
    "parquet": write_parquet,
    "blocks": write_blocks,
    "jpeg": write_jpeg_folder,
    "webdataset": write_webdataset,
    "mosaicml": write_mosaicml,
    "litdata": write_litdata,
}
