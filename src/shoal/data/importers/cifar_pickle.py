"""Read the pickles of CIFAR-10 and CIFAR-100 without running what a pickle may run.

A pickle is a program that may call anything it can name. These files name four things of NumPy and, if Python 3 wrote
them, one of ``_codecs``; here those names lead to stand-ins that only keep what they are given, and all others nowhere.
"""

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.errors import DataError


class _Kept:
    """Stands in for an array or its dtype: keeps the arguments and the state, and makes nothing of them."""

    arguments: tuple[object, ...] = ()
    state: object = None

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Latin1:
    """Stands in for ``_codecs.encode``, which gives bytes to a protocol that has none."""

    def __new__(cls, text: object, encoding: object) -> bytes:  # type: ignore[misc]
        """Return the bytes."""
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError(f"it holds bytes in the encoding {encoding!a:.40}")
        return text.encode("latin1")

    def __setstate__(self, state: object) -> None:
        """Keep a pickle from setting attributes of the class."""


_ALLOWED = {
    ("numpy", "ndarray"): _Kept,
    ("numpy", "dtype"): _Kept,
    ("numpy.core.multiarray", "_reconstruct"): _Kept,
    ("numpy._core.multiarray", "_reconstruct"): _Kept,
    ("_codecs", "encode"): _Latin1,
}


_BROKEN = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What reading a pickle may raise that is damaged or hostile."""


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, name: object) -> Any:
        raise pickle.UnpicklingError("it asks for something outside of it")

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no CIFAR file does".encode("ascii", "backslashreplace").decode()
            ) from None


def read_pickle(name: str, data: bytes) -> dict[str, Any]:
    """Return the dictionary in a pickle: values of plain types, and arrays as stand-ins for ``as_pixels``.

    Raises DataError for anything else, and for a pickle that asks for anything but arrays.
    """
    try:
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except _BROKEN as error:
        raise _not_cifar(name, error) from None
    if not isinstance(content, dict):
        raise _not_cifar(name, f"it holds a {type(content).__name__} instead of a dictionary")
    return {text(name, key): value for key, value in content.items()}


def as_pixels(name: str, value: object) -> NDArray[np.uint8]:
    """Return what stands in for a uint8 array [rows, columns]. Raises DataError for anything else."""
    if isinstance(value, _Kept) and isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, dtype, is_fortran, data = value.state
        if isinstance(dtype, _Kept) and dtype.arguments[:1] in (("u1",), (b"u1",)) and isinstance(data, bytes):
            try:
                rows, columns = shape
                return np.frombuffer(data, np.uint8).reshape((rows, columns), order="F" if is_fortran else "C")
            except (TypeError, ValueError):
                pass
    raise _not_cifar(name, "its data is not an array of uint8 with two dimensions")


def text(name: str, value: object) -> str:
    """Return a string that Python 2 or 3 wrote. Raises DataError for anything else."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str) or "\ufffd" in value:
        raise _not_cifar(name, f"{value!a:.40} is not text")
    return value


def _not_cifar(name: str, why: object) -> DataError:
    return DataError(f"{name} is not a pickle of CIFAR's: {why}; fetch it again")
