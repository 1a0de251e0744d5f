"""A token for the cluster that Shoal starts here: Ray listens on every interface, and runs what it is sent."""

import os
import secrets
import sys


def guard_own_cluster() -> None:
    """Let only this process and its children use the cluster that it is about to start.

    Ray reads the token from the environment when it is imported, so this comes before; where a token is set already, or
    Ray is imported, all stays as it is.
    """
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
