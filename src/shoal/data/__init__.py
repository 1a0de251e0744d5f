"""A data set is a directory: a manifest, a labels file, and shards of checksummed blocks of uint8 images."""

from shoal.data.dataset import DataSet
from shoal.data.manifest import Manifest, load_manifest
from shoal.data.order import Order
from shoal.data.stream import RawBatch, Stream, check_state

__all__ = ["DataSet", "Manifest", "Order", "RawBatch", "Stream", "check_state", "load_manifest"]
