"""The folder of a node: what its processes keep of what lies elsewhere."""

import os
from pathlib import Path


def node_folder() -> Path:
    """Return the folder that ``SHOAL_CACHE`` names (``~/.cache/shoal``): blocks of data sets, copies of runs."""
    return Path(os.environ.get("SHOAL_CACHE") or "~/.cache/shoal").expanduser().absolute()
