"""Which cluster is meant, and by what token it lets us in."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from shoal.errors import ClusterError

DEFAULT = "http://127.0.0.1:8265"
LOOPBACK = {"127.0.0.1", "::1", "localhost"}
TOKEN_FILE = "~/.ray/auth_token"


def address(given: str | None) -> str:
    """Return the URL of a cluster's jobs: the one given, else of the environment, else of this machine.

    Raises:
        ClusterError: it is no URL.
    """
    source, told = "--address", given
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        if not told:
            source, told = f"${name}:", os.environ.get(name, "")
    if not told or (source == "$RAY_ADDRESS:" and not told.startswith(("http://", "https://"))):
        return DEFAULT  # RAY_ADDRESS is also where Ray's own processes meet, which takes no jobs
    if not _is_url(told):
        raise ClusterError(
            f"{source} {told} is not where jobs are taken; give the URL of the cluster's dashboard, e.g. {DEFAULT},"
            " or --cluster cluster.yaml"
        )
    return told.rstrip("/")


def is_here(url: str) -> bool:
    """Tell whether a URL is one of this very machine."""
    return urlsplit(url).hostname in LOOPBACK


def is_exposed(url: str) -> bool:
    """Tell whether what is sent to a URL, the token too, can be read on the way."""
    return urlsplit(url).scheme == "http" and not is_here(url)


def token() -> str | None:
    """Return the token by which Ray's own tools are let in; None where there is none.

    Raises:
        ClusterError: the file of it cannot be read.
    """
    if said := os.environ.get("RAY_AUTH_TOKEN"):
        return said.strip()
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or TOKEN_FILE).expanduser()
    try:
        return file.read_text().strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(f"cannot read the token in {file}: {error}; mend it, or set RAY_AUTH_TOKEN") from None


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # half an IPv6 address, or no port
        return False
