"""Paths as a user writes them."""

from pathlib import Path


def expanded(path: Path) -> Path:
    """Return ``path`` with a leading ``~`` resolved: a shell leaves that of ``--out=~/x`` alone."""
    try:
        return path.expanduser()
    except RuntimeError:  # `~nobody`: a folder may well be called that
        return path
