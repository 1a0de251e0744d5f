"""All that a source reads, as the import of it would put it together."""

import pickle
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shoal.data.importers.source import Source


class Read(NamedTuple):
    """Images and labels by split, the number of images that were left out, and the bytes of the largest piece."""

    images: dict[str, Any]
    labels: dict[str, NDArray[np.int64] | None]
    num_skipped: int
    piece_bytes: int


def rows_of(source: Source) -> Read:
    """Read all units of a source that has been sent to another process and back."""
    source = pickle.loads(pickle.dumps(source))
    images: dict[str, list[Any]] = defaultdict(list)
    labels: dict[str, list[int]] = defaultdict(list)
    num_skipped = piece_bytes = 0
    for unit in source.units:
        for rows in source.read(pickle.loads(pickle.dumps(unit))):
            num_skipped += rows.num_skipped
            images[rows.split] += list(rows.images)
            assert (rows.labels is None) == (source.class_names is None)
            if rows.labels is not None:
                assert len(rows.labels) == len(rows)
                labels[rows.split] += np.asarray(rows.labels).tolist()
            if isinstance(rows.images, np.ndarray):
                assert rows.images.dtype == np.uint8
                assert rows.images.shape[1:] == source.shape
                piece_bytes = max(piece_bytes, rows.images.nbytes)
    assert set(images) <= set(source.splits)
    if source.num_rows is not None:
        assert sum(map(len, images.values())) == source.num_rows
    return Read(
        {split: found if source.encoded else np.stack(found) for split, found in images.items() if found},
        {split: None if source.class_names is None else np.array(labels[split], np.int64) for split in images},
        num_skipped,
        piece_bytes,
    )
