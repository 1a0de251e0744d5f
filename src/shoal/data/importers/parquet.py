"""Import Parquet files: images as files, as hub data sets have them, or as pixels; labels as numbers or strings."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shoal.data.importers.class_names import MAX_CLASSES, names_for
from shoal.data.importers.image_files import PIECE_BYTES, ImageFiles, Item
from shoal.data.importers.images import Mode
from shoal.data.importers.parquet_columns import (
    choose_image,
    choose_label,
    class_labels,
    files_of,
    holds_files,
    numbers_of,
    pixels_of,
)
from shoal.data.importers.pixel_shape import as_nchw, check_shape, shape_of
from shoal.data.importers.source import Rows
from shoal.data.importers.splits import find_files, order_splits
from shoal.errors import DataError

READ_AHEAD_BYTES = 1 << 20
"""Read of a column at a time; else Arrow reads a whole row group at once."""

MOST_FILES = 1024
"""In a batch: equal files may take no room in a Parquet file, and do in memory."""


@dataclass(frozen=True)
class RowGroup:
    """One row group of one file; ``batch_rows`` of it are read at a time."""

    file: Path
    split: str
    index: int
    rows: int
    batch_rows: int


@dataclass(frozen=True)
class ParquetSource:
    """Rows of Parquet files, row group by row group.

    Attributes:
        image_column: its values are files where ``files`` says how they become rows, otherwise pixels.
        label_column: None for no labels.
        numbers: class numbers of labels that are strings, None for labels that are numbers.
        skip_bad: leave out rows without an image.
    """

    shape: tuple[int, int, int]
    class_names: Sequence[str] | None
    splits: Sequence[str]
    units: Sequence[RowGroup]
    num_rows: int | None
    image_column: str
    label_column: str | None
    numbers: dict[str, int] | None
    files: ImageFiles | None
    skip_bad: bool
    encoded: bool
    kind: str = "parquet"

    def read(self, unit: RowGroup) -> Iterator[Rows]:
        """Yield the rows of a row group, in pieces of a few MiB. Raises DataError that names file and rows."""
        labelled = self.label_column is not None
        if self.files is not None:
            yield from self.files.rows(unit.split, self._items(unit), labelled=labelled)
            return
        for name, images, labels in self._batches(unit):
            present = images.is_valid()
            if images.null_count and not self.skip_bad:
                raise DataError(f"{name} have {images.null_count:,} rows without an image; leave those out: --skip-bad")
            pixels = as_nchw(name, pixels_of(name, images.filter(present)), self.shape)
            numbers = labels[present.to_numpy(zero_copy_only=False)] if labelled else None
            yield Rows(unit.split, pixels, numbers, images.null_count)

    def _items(self, unit: RowGroup) -> Iterator[Item]:
        row = 0
        for _, images, labels in self._batches(unit):
            for file, label in zip(files_of(images), labels.tolist(), strict=True):
                yield f"{unit.file}: row {row:,} of row group {unit.index}", file, label
                row += 1

    def _batches(self, unit: RowGroup) -> Iterator[tuple[str, pa.Array, NDArray[np.int64]]]:
        """Yield name, images and labels (-1 for none) of a few rows at a time."""
        with open_parquet_file(unit.file) as file:
            schema = file.schema_arrow
            labelled = self.label_column is not None and self.label_column in schema.names
            columns = [self.image_column, *([self.label_column] if labelled else [])]
            most = PIECE_BYTES // int(np.prod(self.shape)) if self.files is None else MOST_FILES
            rows = max(1, min(unit.batch_rows, most))
            row = 0
            # One thread: an import reads several row groups at once, each in a process of its own.
            for batch in file.iter_batches(rows, row_groups=[unit.index], columns=columns, use_threads=False):
                name = f"{unit.file}: rows {row:,} to {row + len(batch) - 1:,} of row group {unit.index}"
                labels = np.full(len(batch), -1, np.int64)
                if labelled:
                    names = self.class_names or []
                    labels = numbers_of(name, batch.column(self.label_column), self.numbers, len(names))
                yield name, batch.column(self.image_column), labels
                row += len(batch)


def open_parquet(
    src: Path,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    shape: Sequence[int] | None = None,
    size: int | tuple[int, int] | None = None,
    mode: Mode | None = None,
    skip_bad: bool = False,
    keep_encoded: bool = False,
) -> ParquetSource:
    """Open a Parquet file, a folder of them or a pattern; ``splits.find_files`` says how names make splits.

    Images are PNG or JPEG files (a struct with ``bytes``, or binary), which become rows as ``images.decode`` says, or
    pixels (fixed-size binary, or lists of integers 0 to 255). Pixels take their shape from nested lists' sizes; other
    pixels need ``shape``, (C, H, W). A binary column holds pixels where ``shape`` is given. ``size`` and ``mode`` are
    for files; ``skip_bad`` leaves out what is missing or unreadable, counted; ``keep_encoded`` hands on the files.

    Labels are integers, -1 or null for none, named by the hub's ClassLabel or else by their numbers; or strings, whose
    classes are sorted by name. ``label_column="none"`` leaves them out. Without a given one, columns are chosen by
    their usual names. All footers, and labels that are not named, are read at once. Raises DataError.
    """
    found = find_files(src, (".parquet",))
    with open_parquet_file(found[0].file) as file:
        schema = file.schema_arrow
    image = choose_image(str(found[0].file), schema, image_column)
    label = choose_label(str(found[0].file), schema, label_column)
    wanted = None if shape is None else check_shape(shape)
    kind = schema.field(image).type
    units = [unit for item in found for unit in _row_groups(item.file, item.split, schema, image, label)]
    if not units:
        raise DataError(f"{src} has no rows; give Parquet files that have some")
    names, numbers = (None, None) if label is None else _classes(units, schema, label)
    source = ParquetSource(
        shape=(1, 1, 1),
        class_names=names,
        splits=order_splits(unit.split for unit in units),
        units=units,
        num_rows=None if skip_bad else sum(unit.rows for unit in units),
        image_column=image,
        label_column=label,
        numbers=numbers,
        files=None,
        skip_bad=skip_bad,
        encoded=keep_encoded,
    )
    if holds_files(kind) and (wanted is None or pa.types.is_struct(kind)):
        if wanted is not None:
            raise DataError(f"image files have a shape of their own, so shape {list(wanted)} does not apply; give size")
        items = chain.from_iterable(map(source._items, units))
        files = ImageFiles.like_first(
            items, str(src), mode=mode, size=size, skip_bad=skip_bad, keep_encoded=keep_encoded
        )
        return replace(source, shape=files.shape, files=files)
    given = {"size": size is not None, "mode": mode is not None, "keep_encoded": keep_encoded}
    if wrong := [option for option, is_given in given.items() if is_given]:
        raise DataError(
            f"column '{image}' of {src} holds pixels, and {' and '.join(wrong)} is for image files; omit it"
        )
    return replace(source, shape=wanted or _first_shape(source))


@contextmanager
def open_parquet_file(path: Path) -> Iterator[pq.ParquetFile]:
    """Yield a Parquet file of which a page is in memory at a time. Damage becomes a DataError that names the file."""
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=READ_AHEAD_BYTES) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is not readable as a Parquet file: {error}; fetch it again") from None


def _row_groups(path: Path, split: str, schema: pa.Schema, image: str, label: str | None) -> Iterator[RowGroup]:
    """Yield the row groups of a file whose columns are like those of ``schema``."""
    with open_parquet_file(path) as file:
        here, metadata = file.schema_arrow, file.metadata
    for column in [image] + [label] * (label is not None and label in here.names):
        kind = here.field(column).type if column in here.names else "missing"
        if kind != schema.field(column).type:
            raise DataError(
                f"column '{column}' of {path} is {kind} but of the first file {schema.field(column).type}; "
                "all files must have the same columns"
            )
    if label is not None and class_labels(here).get(label) != class_labels(schema).get(label) and label in here.names:
        raise DataError(f"{path} names the classes of '{label}' unlike the first file; all must have the same classes")
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        if group.num_rows:
            columns = [group.column(i) for i in range(group.num_columns)]
            num_bytes = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] == image)
            batch = max(1, min(group.num_rows, PIECE_BYTES * group.num_rows // max(1, num_bytes)))
            yield RowGroup(path, split, index, group.num_rows, batch)


def _classes(units: Sequence[RowGroup], schema: pa.Schema, label: str) -> tuple[list[str], dict[str, int] | None]:
    """Return the names of the classes and, where labels are strings, their numbers."""
    kind = schema.field(label).type
    if pa.types.is_integer(kind) and (names := class_labels(schema).get(label)):
        return names, None
    values: set[Any] = set()
    for unit in units:
        with open_parquet_file(unit.file) as file:
            if label not in file.schema_arrow.names:
                continue
            for batch in file.iter_batches(1 << 16, row_groups=[unit.index], columns=[label], use_threads=False):
                values.update(pc.unique(batch.column(0)).drop_null().to_pylist())
        if len(values) > MAX_CLASSES + 1:
            raise DataError(f"column '{label}' of {unit.file} has more than {MAX_CLASSES:,} classes; is it the labels?")
    if pa.types.is_integer(kind):
        if values and min(values) < -1:
            raise DataError(
                f"column '{label}' has the label {min(values)}; classes are numbered from 0 (-1: none); renumber them"
            )
        return names_for([np.array(sorted(values), np.int64)], None), None
    if not values:
        raise DataError(f"column '{label}' has no values; import without labels: --label-column none")
    named = sorted(str(value) for value in values)
    return named, {name: number for number, name in enumerate(named)}


def _first_shape(source: ParquetSource) -> tuple[int, int, int]:
    for unit in source.units:
        for name, images, _ in source._batches(unit):
            present = images.drop_null()
            if len(present):
                return shape_of(name, pixels_of(name, present[:1]).shape[1:])
    raise DataError(f"column '{source.image_column}' has no images; give another --image-column")
