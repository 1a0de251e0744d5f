"""The labels file: one int32 per row of the data set, in the order of the global ids, -1 where a row has none."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from shoal.data.manifest import LabelsFile, Manifest
from shoal.errors import DataError

LABELS_NAME = "labels.arrow"
_SCHEMA = pa.schema([pa.field("label", pa.int32(), nullable=False)])


def write_labels(folder: Path, labels: NDArray[np.int32]) -> LabelsFile:
    """Write all labels, int32 [num_rows], as one record batch into ``folder``."""
    column = pa.array(labels, pa.int32())
    path = folder / LABELS_NAME
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        writer.write_batch(pa.record_batch([column], schema=_SCHEMA))
    data = path.read_bytes()
    return LabelsFile(
        path=LABELS_NAME, bytes=len(data), xxh3=xxhash.xxh3_64_hexdigest(data), rows_xxh3=hash_labels(labels)
    )


def read_labels(folder: Path, manifest: Manifest) -> NDArray[np.int32]:
    """Return all labels of a labelled data set, int32 [num_rows]. Raises DataError where the file was changed."""
    assert manifest.labels is not None
    path = folder / manifest.labels.path
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} is missing; import the data again") from None
    digest = xxhash.xxh3_64_hexdigest(data)
    if digest != manifest.labels.xxh3:
        raise DataError(
            f"{path}: xxh3 is {digest} but the manifest says {manifest.labels.xxh3}, "
            "so the labels were changed after the import; import the data again"
        )
    column = pa.ipc.open_file(data).get_batch(0).column(0)
    return np.frombuffer(column.buffers()[1], "<i4", len(column))


def hash_labels(labels: NDArray[np.int32]) -> str:
    """Return the xxh3_64, in hex, of labels as little-endian int32."""
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(labels, "<i4").tobytes())
