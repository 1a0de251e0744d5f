"""Which columns of a Parquet file are the images and the labels, and their values as arrays."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shoal.errors import DataError, did_you_mean

IMAGE_NAMES = ("image", "img", "images", "picture", "jpg", "png", "pixels", "x")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "cls", "y")
"""The names that tell among several columns that would do, in this order."""

NO_LABELS = "none"
"""What to give as the label column to import without labels."""

_Is = Callable[[pa.DataType], bool]


def holds_files(kind: pa.DataType) -> bool:
    """Return whether a column holds image files: binary, or a struct with binary ``bytes``, as hub data sets have."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_binary(kind.field(index).type)
    return _is_binary(kind)


def holds_pixels(kind: pa.DataType) -> bool:
    """Return whether a column holds pixels: fixed-size binary, or lists (of lists) of integers."""
    kind = _storage(kind)
    if pa.types.is_fixed_size_binary(kind):
        return True
    return _is_list(kind) and (pa.types.is_integer(kind.value_type) or holds_pixels(kind.value_type))


def holds_labels(kind: pa.DataType) -> bool:
    """Return whether a column can be labels: integers, or strings."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def choose_image(file: str, schema: pa.Schema, given: str | None) -> str:
    """Return the name of the image column: the one given, named as usual, or else the only one that is no list.

    Raises DataError where none, or more than one, could be meant.
    """
    rule = "image files (binary, or a struct with bytes) or pixels (fixed-size binary, or lists of uint8)"
    chosen = _choose(file, schema, given, "image", rule, lambda kind: holds_files(kind) or holds_pixels(kind))
    if chosen is None:
        raise DataError(
            f"{file} has no column '{IMAGE_NAMES[0]}' of {rule}; it has {_columns(schema)}; give --image-column, or "
            "convert one"
        )
    return chosen


def choose_label(file: str, schema: pa.Schema, given: str | None) -> str | None:
    """Return the name of the label column, or None: the one given, named as usual, or that the hub calls ClassLabel."""
    if given == NO_LABELS and NO_LABELS not in schema.names:
        return None
    return _choose(file, schema, given, "label", "integers or strings", holds_labels)


def _choose(file: str, schema: pa.Schema, given: str | None, what: str, rule: str, fits: _Is) -> str | None:
    if given is not None:
        if given not in schema.names:
            raise DataError(
                f"{file} has no column '{given}'{did_you_mean(given, schema.names)}; it has {_columns(schema)}"
            )
        if not fits(schema.field(given).type):
            raise DataError(f"column '{given}' of {file} is {schema.field(given).type}; {what}s must be {rule}")
        return given
    names = {"image": IMAGE_NAMES, "label": LABEL_NAMES}[what]
    fitting = [field.name for field in schema if fits(field.type)]
    named = [name for name in names if name in fitting]
    if what == "image":  # lists of any length may be anything
        named = named or [name for name in fitting if not _is_list(schema.field(name).type)]
    else:
        named = named or [name for name in fitting if name in class_labels(schema)]
    if len(named) > 1 and named[0] not in names:
        raise DataError(
            f"{file} has {len(named)} columns that could be the {what}s; give --{what}-column {' or '.join(named)}"
        )
    return named[0] if named else None


def class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the class names of each column that the hub's metadata (key ``huggingface``) calls a ClassLabel."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        items = features.items()
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {name: names for name, feature in items if (names := _names(feature)) is not None}


def files_of(column: pa.Array) -> Iterator[bytes | None]:
    """Yield the image file of each row, None where there is none."""
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    for value in column:
        yield value.as_py()


def pixels_of(name: str, column: pa.Array) -> NDArray[np.uint8]:
    """Return the values of a column of pixels without nulls, [n, *sizes], where the sizes are those of its lists.

    Raises DataError for lists of different lengths, nulls inside, and values beyond 0 to 255.
    """
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    num = len(column)
    if pa.types.is_fixed_size_binary(column.type) or _is_binary(column.type):
        return _bytes_of(name, column)
    sizes = []
    while _is_list(column.type):
        lengths = pc.unique(pc.list_value_length(column)).to_pylist()
        if len(lengths) > 1 or column.null_count:
            raise DataError(f"{name} has lists of {_some(lengths)} values; all images need one size")
        sizes.append(lengths[0] if lengths else 0)
        column = column.flatten()
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
    if column.null_count:
        raise DataError(f"{name} has pixels without a value; fill them first")
    try:
        values = column.cast(pa.uint8()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise DataError(f"{name} has values that are not pixels, 0 to 255: {error}; convert them first") from None
    return np.asarray(values, np.uint8).reshape(num, *sizes)


def numbers_of(name: str, column: pa.Array, numbers: Mapping[str, int] | None, num_classes: int) -> NDArray[np.int64]:
    """Return labels as class numbers, int64 [n], -1 where there is none. Raises DataError for an unknown class."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if numbers is not None:
        try:
            return np.array([-1 if text is None else numbers[text] for text in column.to_pylist()], np.int64)
        except KeyError as unknown:
            raise DataError(f"{name} has the class {unknown}, which was not there before; import anew") from None
    labels = np.asarray(column.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False), np.int64)
    if len(labels) and not (labels.min() >= -1 and labels.max() < num_classes):
        raise DataError(
            f"{name} has labels from {labels.min()} to {labels.max()}, but {num_classes} classes are numbered 0 to "
            f"{num_classes - 1} (-1: no label); correct the labels or the names of the classes"
        )
    return labels


def _bytes_of(name: str, column: pa.Array) -> NDArray[np.uint8]:
    if not pa.types.is_fixed_size_binary(column.type):
        lengths = pc.unique(pc.binary_length(column)).to_pylist()
        if len(lengths) > 1:
            raise DataError(f"{name} has images of {_some(lengths)} bytes; all need one size")
        if not lengths or lengths[0] == 0:
            return np.empty((len(column), 0), np.uint8)
        column = column.cast(pa.binary(lengths[0]))
    width = column.type.byte_width
    data = np.frombuffer(column.buffers()[1], np.uint8)
    return data[column.offset * width : (column.offset + len(column)) * width].reshape(len(column), width)


def _names(feature: Any) -> list[str] | None:
    """Return the names of a ClassLabel feature, or None for anything else."""
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return None
    names = feature.get("names")
    if isinstance(names, dict):  # data set cards write them as {"0": …, "1": …}
        names = [names.get(str(number)) for number in range(len(names))]
    known = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    return names if known else None


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"'{field.name}' ({field.type})" for field in schema)


def _some(lengths: list[int | None]) -> str:
    return " and ".join("no" if length is None else f"{length:,}" for length in lengths[:2])
