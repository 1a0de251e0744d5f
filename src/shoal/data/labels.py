"""The labels file: one int32 per row of the data set, in the order of the global ids, -1 where a row has none."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from shoal.data.manifest import LabelsFile, Manifest
from shoal.data.second_look import until_right
from shoal.errors import DataError, MissingError
from shoal.storage.location import Location

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


def read_labels(folder: str | Path | Location, manifest: Manifest) -> NDArray[np.int32]:
    """Return all labels of a labelled data set, int32 [num_rows]. Raises DataError where the file was changed."""
    assert manifest.labels is not None
    file, entry = Location.parse(folder) / manifest.labels.path, manifest.labels
    try:
        return until_right(lambda again: _read(file, entry), remote=file.local is None)
    except MissingError:
        raise DataError(f"{file} is missing; import the data again") from None


def hash_labels(labels: NDArray[np.int32]) -> str:
    """Return the xxh3_64, in hex, of labels as little-endian int32."""
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(labels, "<i4").tobytes())


def _read(file: Location, entry: LabelsFile) -> NDArray[np.int32]:
    data = file.read_bytes()
    digest = xxhash.xxh3_64_hexdigest(data)
    if digest != entry.xxh3:
        raise DataError(
            f"{file}: xxh3 is {digest} but the manifest says {entry.xxh3}, "
            "so the labels were changed after the import; import the data again"
        )
    column = pa.ipc.open_file(data).get_batch(0).column(0)
    return np.frombuffer(column.buffers()[1], "<i4", len(column))
