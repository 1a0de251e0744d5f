"""The line by which a job starts on the cluster, and on which of its machines."""

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shoal_ray.resources import NODES
from shoal_ray.submission.environment import HOOK

if TYPE_CHECKING:  # on the cluster nothing is gathered
    from shoal_ray.submission.tree import Tree

CHECK, RUN = "check", "run"

STOP_WAIT_SEC = 30
"""Between SIGTERM and SIGKILL of a job that is stopped: Ray's own 3 s are not enough for a checkpoint."""


def entrypoint(mode: str, run: str, words: Sequence[str]) -> str:
    """Return the line for the shell of the cluster; the words are quoted.

    ``exec``, so that what Ray stops is the driver and not a shell around it.
    """
    return "exec " + shlex.join(["python", "-m", "shoal_ray.submission.inside", mode, run, *words])


def runtime_env(package: str, tree: "Tree", settings: Mapping[str, str], *, secrets: bool) -> dict[str, Any]:
    """Return what Ray prepares for the processes of a job."""
    variables = {**settings, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_SEC)}
    if tree.is_checkout:
        variables["PYTHONPATH"] = "src:distributed"  # before what is installed there
    hook = {"worker_process_setup_hook": HOOK} if secrets else {}
    return {"working_dir": f"gcs://{package}", "env_vars": variables, **hook}


def placement(nodes: Sequence[Mapping[str, Any]], *, on_head: bool) -> dict[str, str] | None:
    """Return the labels of the nodes that a driver may run on: any but the head, where there are others.

    A driver dies with its machine. The head is the one whose processes are taken down and started again while the
    others go on: workers survive that, since Ray's state is on disk there (``RAY_gcs_storage``), and a driver
    elsewhere survives it with them. A driver on the head would not, and Ray would put it there if nothing was said.
    ``on_head`` is for clusters whose other machines come and go, as spot instances do; one that says how far it grows
    is such a cluster.
    """
    heads = [node["node_id"] for node in nodes if node["is_head_node"]]
    grows = any(NODES in (node.get("resources_total") or {}) for node in nodes)
    if on_head or grows or len(heads) != 1 or len(nodes) == 1:
        return None
    return {"ray.io/node-id": f"!{heads[0]}"}
