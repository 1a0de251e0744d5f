"""Readers: each an endless iterator over batches of random images."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module  # of packages that may not be there

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from reader_formats import JPEG_ROWS, Source, jpeg
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import to_tensor

from shoal.data import DataSet, Stream

BATCH = 256
WINDOW_BLOCKS = 16

Batches = Iterator[Tensor]


@dataclass(frozen=True)
class Reader:
    """One way to read.

    Attributes:
        name: what --only calls it.
        label: what the table calls it.
        baseline: the name of the reader that it is compared with.
        open: makes the endless iterator over batches [BATCH, C, H, W].
        package: without which it is left out.
    """

    name: str
    label: str
    baseline: str
    open: Callable[[Source], Batches]
    package: str | None = None


def to_float(batches: Batches) -> Batches:
    """Turn batches of uint8 into float32 in [0, 1], in memory that is used again."""
    first = next(batches)
    pixels = torch.empty(first.shape)
    yield pixels.copy_(first).mul_(1 / 255)
    for images in batches:
        yield pixels.copy_(images).mul_(1 / 255)


def in_memory(source: Source) -> Batches:
    """Gather random rows of a tensor in memory, uint8, into memory that is used again."""
    images = torch.from_numpy(source.images)
    out = torch.empty((BATCH, *source.shape), dtype=torch.uint8)
    while True:
        order = torch.randperm(len(images))
        for start in range(0, len(images) - BATCH + 1, BATCH):
            yield torch.index_select(images, 0, order[start : start + BATCH], out=out)


def shoal(source: Source, name: str = "shoal", window_blocks: int = WINDOW_BLOCKS) -> Batches:
    """Read by a Stream, uint8: a thread that reads ahead, and the labels, as a run has them."""
    data = DataSet.open(source.path(name))
    settings = {"split": "train", "batch": BATCH, "seed": 0, "shuffle_window_blocks": window_blocks}
    with Stream(data, **settings, rows=slice(0, BATCH)) as stream:  # type: ignore[arg-type]  # of several types
        for batch in stream:
            yield batch.images


def parquet(source: Source) -> Batches:
    """Shuffle as Shoal does, windows of blocks, with row groups of a Parquet file for blocks."""
    file = pq.ParquetFile(source.path("parquet") / "data.parquet", memory_map=True)
    generator = np.random.default_rng(0)
    while True:
        groups = generator.permutation(file.num_row_groups)
        for start in range(0, len(groups), WINDOW_BLOCKS):
            table = file.read_row_groups(groups[start : start + WINDOW_BLOCKS].tolist(), use_threads=False)
            column = table.column("image").combine_chunks()
            rows = np.frombuffer(column.buffers()[1], np.uint8).reshape(len(column), *source.shape)
            order = generator.permutation(len(rows))
            for begin in range(0, len(rows) - BATCH + 1, BATCH):
                yield torch.from_numpy(rows[order[begin : begin + BATCH]])


class ByBatch(Dataset[tuple[Tensor, Tensor]]):
    """Images in memory that a DataLoader asks for by batch."""

    def __init__(self, source: Source) -> None:
        self._images = torch.from_numpy(source.images)
        self._labels = torch.from_numpy(source.labels)

    def __len__(self) -> int:
        return len(self._images)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return a batch."""
        return self._images[indices], self._labels[indices]


class ByImage(Dataset[tuple[Tensor, int]]):
    """Images in memory that become tensors one by one, as torchvision's data sets of that kind do."""

    def __init__(self, source: Source) -> None:
        self._pixels = source.images.transpose(0, 2, 3, 1)
        self._labels = source.labels

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one image, float32."""
        pixels = np.ascontiguousarray(self._pixels[index])
        return to_tensor(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)), int(self._labels[index])


def loader_by_batch(source: Source) -> Batches:
    """Read by a DataLoader that asks for whole batches, uint8."""
    loader = DataLoader(ByBatch(source), BATCH, shuffle=True, drop_last=True, collate_fn=lambda batch: batch)
    while True:
        for images, _ in loader:
            yield images


def loader_by_image(source: Source) -> Batches:
    """Read by a DataLoader, image by image."""
    loader = DataLoader(ByImage(source), BATCH, shuffle=True, drop_last=True)
    while True:
        for images, _ in loader:
            yield images


def image_folder(source: Source) -> Batches:
    """Read a folder of JPEG files by torchvision."""
    mode = "L" if source.shape[0] == 1 else "RGB"
    files = ImageFolder(str(source.path("jpeg")), lambda image: to_tensor(image.convert(mode)))
    loader = DataLoader(files, BATCH, shuffle=True, drop_last=True)
    while True:
        for images, _ in loader:
            yield images


def decode_loop(source: Source) -> Batches:
    """Decode JPEG files that are in memory, one after another, by Pillow, uint8."""
    files = [jpeg(image) for image in source.images[:JPEG_ROWS]]
    generator = np.random.default_rng(0)
    out = np.empty((BATCH, *source.shape), np.uint8)
    while True:
        order = generator.permutation(len(files)).tolist()
        for start in range(0, len(files) - BATCH + 1, BATCH):
            for row, index in zip(out, order[start : start + BATCH], strict=True):
                _decode(files[index], row)
            yield torch.from_numpy(out)


def _decode(file: bytes, row: NDArray[np.uint8]) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(file)))
    row[:] = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def webdataset(source: Source) -> Batches:
    """Read tar files of JPEG files by WebDataset, shuffled over 1,000 images."""
    webdataset = import_module("webdataset")

    folder = source.path("webdataset")
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    samples = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0).shuffle(1_000)
    pairs = samples.decode("torchl" if source.shape[0] == 1 else "torchrgb").to_tuple("jpg", "cls")
    while True:
        for images, _ in pairs.batched(BATCH, partial=False):
            yield images.reshape(BATCH, *source.shape)


def mosaicml(source: Source) -> Batches:
    """Read by MosaicML Streaming, shuffled as it does unless told otherwise."""
    streaming = import_module("streaming")

    streaming.base.util.clean_stale_shared_memory()  # of a benchmark that was killed
    data = streaming.StreamingDataset(local=str(source.path("mosaicml")), shuffle=True, batch_size=BATCH)
    while True:
        for batch in DataLoader(data, BATCH, drop_last=True):
            yield batch["image"]


def litdata(source: Source) -> Batches:
    """Read by litdata, shuffled as it does unless told otherwise."""
    litdata = import_module("litdata")

    data = litdata.StreamingDataset(str(source.path("litdata") / "chunks"), shuffle=True, drop_last=True)
    while True:
        for batch in litdata.StreamingDataLoader(data, batch_size=BATCH, drop_last=True):
            yield batch["image"]


def ray_data(source: Source) -> Batches:
    """Read by Ray Data in processes of its own, shuffled over 8,192 images."""
    ray = import_module("ray")

    if not ray.is_initialized():
        ray.init(num_cpus=1, include_dashboard=False, logging_level="error", log_to_driver=False)
        import_module("ray.data").DataContext.get_current().enable_progress_bars = False
    blocks = ray.data.read_numpy(str(source.path("blocks")))
    while True:
        for batch in blocks.iter_torch_batches(batch_size=BATCH, drop_last=True, local_shuffle_buffer_size=8_192):
            yield batch["data"]


def _float(read: Callable[[Source], Batches]) -> Callable[[Source], Batches]:
    return lambda source: to_float(read(source))


def _shoal(name: str) -> Callable[[Source], Batches]:
    return lambda source: shoal(source, name)


READERS = (
    Reader("p", "in memory, float32 (P)", "p", _float(in_memory)),
    Reader("shoal", "Shoal, float32", "p", _float(shoal)),
    Reader("shoal-shards", "Shoal, float32, each block a shard", "p", _float(_shoal("shoal-a-shard-a-block"))),
    Reader("parquet", "Parquet fixed_size_binary", "p", _float(parquet)),
    Reader("loader-batch", "in memory, DataLoader with `__getitems__`", "p", _float(loader_by_batch)),
    Reader("loader", "in memory, torchvision's transform, DataLoader", "p", loader_by_image),
    Reader("litdata", "litdata", "p", _float(litdata), "litdata"),
    Reader("mosaicml", "MosaicML Streaming", "p", _float(mosaicml), "streaming"),
    Reader("ray", "Ray Data `iter_torch_batches`", "p", _float(ray_data)),
    Reader("image-folder", "JPEG: torchvision's ImageFolder, DataLoader", "p", image_folder),
    Reader("webdataset", "JPEG: WebDataset", "p", webdataset, "webdataset"),
    Reader("gather", "in memory, uint8", "gather", in_memory),
    Reader("shoal-uint8", "Shoal, uint8", "gather", shoal),
    Reader("shoal-uint8-shards", "Shoal, uint8, each block a shard", "gather", _shoal("shoal-a-shard-a-block")),
    Reader("decode", "JPEG in memory: Pillow in a loop, uint8", "decode", decode_loop),
    Reader("shoal-jpeg", "JPEG: Shoal, uint8", "decode", _shoal("shoal-jpeg")),
)
