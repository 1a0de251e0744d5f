"""Export to Parquet files as hub data sets have them: SPLIT-00000-of-00003.parquet."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shoal.data.dataset import DataSet
from shoal.data.export.pngs import Part, pngs

FILE_BYTES = 256 << 20
"""Of pixels in a file, which as PNG are fewer."""

PAGE_ROWS = 32
"""Small pages: a reader has one page in memory at a time, and Arrow looks at their size only so often."""

_IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])


def write_parquet(dataset: DataSet, part: Part, folder: Path) -> Iterator[int]:
    """Write a part into ``folder`` and yield the images of each piece, which is a row group."""
    num_files = max(1, -(-part.rows * int(np.prod(dataset.shape)) // FILE_BYTES))
    schema = _schema(dataset.class_names)
    for number in range(num_files):
        start, stop = (part.rows * (number + end) // num_files for end in (0, 1))
        piece = Part(part.split, part.first + start, stop - start, part.start + start)
        name = f"{part.split}-{number:05d}-of-{num_files:05d}.parquet"
        # PNG files do not compress and do not repeat.
        with pq.ParquetWriter(
            folder / name, schema, compression="none", use_dictionary=False, write_batch_size=PAGE_ROWS
        ) as writer:
            yield from _write_file(dataset, piece, writer, schema)


def _write_file(dataset: DataSet, part: Part, writer: pq.ParquetWriter, schema: pa.Schema) -> Iterator[int]:
    row = 0
    with pngs(dataset, part) as pieces:
        for files, labels in pieces:
            paths = [part.file_name(row + i) for i in range(len(files))]
            images = pa.StructArray.from_arrays([pa.array(files, pa.binary()), pa.array(paths)], fields=list(_IMAGE))
            columns = [images] if labels is None else [images, pa.array(labels, pa.int64())]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            row += len(files)
            yield len(files)


def _schema(class_names: list[str] | None) -> pa.Schema:
    features: dict[str, object] = {"image": {"_type": "Image"}}
    fields = [pa.field("image", _IMAGE)]
    if class_names is not None:
        features["label"] = {"names": class_names, "_type": "ClassLabel"}
        fields.append(pa.field("label", pa.int64()))
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})
