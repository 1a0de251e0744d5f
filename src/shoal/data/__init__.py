"""A data set is a directory: a manifest, a labels file, and shards of checksummed blocks of uint8 images."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from shoal.data.manifest import Manifest, load_manifest

if TYPE_CHECKING:
    from shoal.data.dataset import DataSet
    from shoal.data.order import Order
    from shoal.data.stream import RawBatch, Stream, check_state

__all__ = ["DataSet", "Manifest", "Order", "RawBatch", "Stream", "check_state", "load_manifest"]

_HOMES = {"DataSet": "dataset", "Order": "order", "RawBatch": "stream", "Stream": "stream", "check_state": "stream"}


def __getattr__(name: str) -> Any:
    """Import what reads data sets when asked for it: that needs torch, 300 MB that an import's processes do without."""
    if name in _HOMES:
        return getattr(import_module(f"shoal.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
