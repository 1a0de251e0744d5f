"""What Ray is to find in the environment, where it looks when it is imported: nothing here imports it."""

import os
import secrets
import sys

HEAD_AWAY_SEC = 600
"""How long a driver goes on without the cluster's head. As in cluster.yaml; Ray's own 60 s are less than a reboot."""


def prepare(address: str | None) -> None:
    """Set the environment for the cluster at ``address``, or for one that is about to be started here.

    Where something is set already, or Ray is imported, all stays as it is.
    """
    if "ray" in sys.modules:
        return
    if address is None:
        _guard()
    else:
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(HEAD_AWAY_SEC))


def _guard() -> None:
    """Let only this process and its children use its cluster: Ray listens on every interface, and runs what it gets."""
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
