"""Encoded data sets, written as the manifest's docstrings say and by nothing of what the importers use."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray
from PIL import Image

from shoal.data.manifest import MANIFEST_NAME, Block, Manifest, Shard, Split


def encode(pixels: NDArray[np.uint8], kind: str = "PNG", **options: object) -> bytes:
    """Return [H, W] or [H, W, C] pixels as a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def write(folder: Path, files: Sequence[bytes], shape: tuple[int, int, int], rows_per_block: int = 10) -> Path:
    """Write ``files`` as a data set of one split in one shard."""
    folder.mkdir()
    schema = pa.schema([pa.field("image", pa.large_binary(), nullable=False)])
    blocks = []
    with pa.ipc.new_file(str(folder / "shard-00000.arrow"), schema) as writer:
        for first in range(0, len(files), rows_per_block):
            some = files[first : first + rows_per_block]
            writer.write_batch(pa.record_batch([pa.array(some, pa.large_binary())], schema=schema))
            payload = b"".join(len(file).to_bytes(8, "little") for file in some) + b"".join(some)
            blocks.append(Block(rows=len(some), xxh3=xxhash.xxh3_64_hexdigest(payload), classes=None))
    content = (folder / "shard-00000.arrow").read_bytes()
    shard = Shard(
        path="shard-00000.arrow",
        split="all",
        rows=len(files),
        bytes=len(content),
        xxh3=xxhash.xxh3_64_hexdigest(content),
        blocks=tuple(blocks),
    )
    manifest = Manifest(
        version=2,
        shape=shape,
        encoding="encoded",
        class_names=None,
        rows_per_block=rows_per_block,
        splits={"all": Split(first=0, rows=len(files))},
        shards=(shard,),
        labels=None,
        source="test",
    ).sealed()
    (folder / MANIFEST_NAME).write_text(manifest.to_json())
    return folder
