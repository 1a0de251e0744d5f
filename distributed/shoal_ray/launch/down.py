"""Stopping Ray on every machine of a launcher's file: `ray down` itself tries a local cluster's head only."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from shoal_ray.launch.cluster_file import ClusterFile
from shoal_ray.launch.findings import Finding
from shoal_ray.launch.ssh import Ssh, last_line, ways

STOP = """exec bash --login -i -c 'source ~/.bashrc; exec ray stop'"""
PATIENCE_SEC = 120
DOWN_SEC = 900
"""For `ray down`: a cloud takes minutes to give machines back."""


def stop_everything(file: ClusterFile) -> Iterator[Finding]:
    """Stop Ray on each machine of one's own; have Ray's launcher give a cloud's machines back.

    Raises:
        ClusterError: no ssh here.
    """
    if not file.local:
        yield _ray_down(file)
        return
    # Not by `ray down`, which is content when the head cannot be told to stop, and knows of a head only where
    # `ray up` ran. The workers would notice after RAY_gcs_rpc_server_reconnect_timeout_s that it is gone.
    head, *workers = file.addresses
    with ways(file) as ssh, ThreadPoolExecutor(8) as pool:
        stopped = [_stop(ssh, head)]  # first: its launcher starts workers that end before it
        yield stopped[0]
        for finding in pool.map(lambda address: _stop(ssh, address), workers):
            stopped.append(finding)
            yield finding
    forgotten = _ray_down(file) if all(finding.good for finding in stopped) else None
    if forgotten and not forgotten.good:  # it takes them out of Ray's own list, so that `ray up` sets them up anew
        yield forgotten


def _stop(ssh: Ssh, address: str) -> Finding:
    trouble = ssh.run(address, STOP, PATIENCE_SEC)
    return Finding(address, "ray stop", trouble or "stopped", good=trouble is None, remedy="stop it there: ray stop")


def _ray_down(file: ClusterFile) -> Finding:
    words = [sys.executable, "-m", "ray.scripts.scripts", "down", "--yes", str(file.path)]
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=DOWN_SEC,
        )
    except subprocess.TimeoutExpired:
        found, good = f"not done after {DOWN_SEC} s", False
    else:
        found, good = "done" if done.returncode == 0 else last_line(done.stdout), done.returncode == 0
    return Finding(file.path.name, "ray down", found, good=good, remedy=f"see what `ray down {file.path}` says")
