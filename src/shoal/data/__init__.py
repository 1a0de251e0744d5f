"""A data set is a directory: a manifest, a labels file, and shards of checksummed blocks of uint8 images."""

from typing import TYPE_CHECKING, Any

from shoal.data.dataset import DataSet
from shoal.data.manifest import Manifest, load_manifest
from shoal.data.order import Order

if TYPE_CHECKING:
    from shoal.data.stream import RawBatch, Stream, check_state

__all__ = ["DataSet", "Manifest", "Order", "RawBatch", "Stream", "check_state", "load_manifest"]


def __getattr__(name: str) -> Any:
    """Import the stream when it is asked for: it needs torch, 300 MB that an import's processes do without."""
    if name in __all__:
        from shoal.data import stream

        return getattr(stream, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
