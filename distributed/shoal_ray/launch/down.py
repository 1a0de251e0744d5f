"""Stopping Ray on every machine of a launcher's file: `ray down` itself stops a local cluster's head only."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from shoal_ray.launch.cluster_file import ClusterFile
from shoal_ray.launch.findings import Finding
from shoal_ray.launch.ssh import last_line, ways

STOP = """exec bash --login -i -c 'source ~/.bashrc; exec ray stop'"""
PATIENCE_SEC = 120


def stop_everything(file: ClusterFile) -> Iterator[Finding]:
    """Have Ray's launcher stop, or give back, what it knows of; then stop Ray on each worker of one's own.

    The workers of a local cluster would notice after RAY_gcs_rpc_server_reconnect_timeout_s that their head is gone.
    """
    words = [sys.executable, "-m", "ray.scripts.scripts", "down", "--yes", str(file.path)]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    yield Finding(
        file.path.name,
        "ray down",
        "done" if done.returncode == 0 else last_line(done.stdout),
        good=done.returncode == 0,
        remedy=f"see what `ray down {file.path}` says",
    )
    if file.local and len(file.addresses) > 1:
        workers = file.addresses[1:]
        with ways(file) as ssh, ThreadPoolExecutor(8) as pool:
            troubles = pool.map(lambda address: ssh.run(address, STOP, PATIENCE_SEC), workers)
            for address, trouble in zip(workers, troubles, strict=True):
                remedy = "stop it there: ray stop"
                yield Finding(address, "ray stop", trouble or "stopped", good=trouble is None, remedy=remedy)
