"""Runs on a machine of a cluster to be, over ssh, before anything is installed there: tells what it has.

A dialogue in lines of JSON on standard input and output; the end of the input ends it, and it leaves nothing behind:

                                 out: {"ready": true}
    in: {"ports": […]}           out: {"now": …}, then {"python": …, …, "listening": a port}
    in: [[address, port], …]     out: {address: null or why it cannot be reached, …}

Meanwhile a port listens, from which nothing is read, so that the others can try to reach it: the first of ``ports``
that is free. Only the standard library, and nothing that an older Python would not understand: it says its version.
"""

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MARK = "shoal-probe "
"""Opens each line of ours: whatever a .bashrc prints comes before."""

CONNECT_SEC = 3
CONNECT_AT_ONCE = 128
NVIDIA_SEC = 20

RAY = ("gcs_server", "raylet")


def main() -> None:
    """Hold the dialogue."""
    tell({"ready": True})  # so that the time of the login is not taken for a difference of clocks
    ports = json.loads(sys.stdin.readline())["ports"]
    tell({"now": time.time()})
    found = facts(ports)
    free = [port for port in ports if port not in found["taken"]]
    listener = listening(free[0] if free else 0)
    threading.Thread(target=welcome, args=(listener,), daemon=True).start()
    found["listening"] = listener.getsockname()[1]
    tell(found)
    line = sys.stdin.readline()
    if line:
        tell(troubles_reaching(json.loads(line)))
        sys.stdin.readline()  # the others may still be trying


def tell(answer: object) -> None:
    """Say one thing."""
    sys.stdout.write(MARK + json.dumps(answer) + "\n")
    sys.stdout.flush()


def facts(ports: list) -> dict:  # type: ignore[type-arg]  # list[int] is none before Python 3.9
    """Return what there is on this machine."""
    home = Path.home()
    return {
        "python": list(sys.version_info[:3]),
        "venv": has_module("venv") and has_module("ensurepip"),
        "installed": (home / "shoal" / ".venv" / "bin" / "ray").exists(),
        "rsync": shutil.which("rsync") is not None,
        "free": {place: shutil.disk_usage(place).free for place in (str(home), "/tmp")},
        "gpus": gpus(),
        "ray": ray_runs(),
        "taken": [port for port in ports if taken(port)],
    }


def has_module(name: str) -> bool:
    """Tell whether Python has a module; Debian's has no ensurepip before its package python3-venv is installed."""
    import importlib.util

    return importlib.util.find_spec(name) is not None


def gpus() -> list:  # type: ignore[type-arg]
    """Return a line for each GPU that the driver knows."""
    try:
        said = subprocess.run(
            ["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=NVIDIA_SEC
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in said.stdout.decode("utf-8", "replace").splitlines() if line.startswith("GPU ")]


def ray_runs() -> bool:
    """Tell whether a node of Ray runs here."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                program = (folder / "cmdline").read_bytes().split(b"\0")[0]
            except OSError:
                continue  # ended meanwhile
            if Path(program.decode("utf-8", "replace")).name in RAY:
                return True
    return False


def taken(port: int) -> bool:
    """Tell whether a port cannot be listened on."""
    try:
        listening(port).close()
    except OSError:
        return True
    return False


def listening(port: int) -> socket.socket:
    """Listen on a port of every interface; 0: any free one."""
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", port))
        listener.listen(64)
    except OSError:
        listener.close()
        raise
    return listener


def welcome(listener: socket.socket) -> None:
    """Accept whoever comes, and hang up."""
    while True:
        listener.accept()[0].close()


def troubles_reaching(pairs: list) -> dict:  # type: ignore[type-arg]
    """Return what trouble_reaching does by address, for all at once: a firewall that drops takes CONNECT_SEC each."""
    with ThreadPoolExecutor(CONNECT_AT_ONCE) as pool:
        troubles = pool.map(lambda pair: trouble_reaching(*pair), pairs)
        return {address: trouble for (address, _), trouble in zip(pairs, troubles)}  # noqa: B905 - none before 3.10


def trouble_reaching(address: str, port: int) -> object:
    """Return why a port cannot be reached, or None."""
    try:
        socket.create_connection((address, port), timeout=CONNECT_SEC).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


if __name__ == "__main__":
    main()
