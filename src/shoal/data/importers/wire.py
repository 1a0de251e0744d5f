"""Objects through a pipe between two processes: pickled, with the bytes of arrays beside the pickle, uncopied."""

import pickle
import struct
from typing import Any, BinaryIO

_NUMBER = struct.Struct("<Q")


class ClosedError(Exception):
    """The other side went away."""


def send(file: BinaryIO, message: object) -> None:
    """Write an object. Raises BrokenPipeError where nobody reads any more."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    sizes = [len(body), *(view.nbytes for view in views)]
    file.write(b"".join(map(_NUMBER.pack, [len(sizes), *sizes])))
    file.write(body)
    for view in views:
        file.write(view)
    file.flush()


def receive(file: BinaryIO) -> tuple[Any, int]:
    """Return an object and the bytes that came with it; wait for it to be whole.

    Raises ClosedError where the other side ends before or within it.
    """
    (num,) = _NUMBER.unpack(_read(file, _NUMBER.size))
    sizes = [size for (size,) in _NUMBER.iter_unpack(_read(file, num * _NUMBER.size))]
    body, *buffers = [_read(file, size) for size in sizes]
    return pickle.loads(body, buffers=buffers), sum(sizes)


def _read(file: BinaryIO, num_bytes: int) -> bytearray:
    data = bytearray(num_bytes)
    view = memoryview(data)
    while view:
        got = file.readinto(view)  # type: ignore[attr-defined]  # of every file opened as bytes
        if not got:
            raise ClosedError
        view = view[got:]
    return data
