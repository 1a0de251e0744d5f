"""What a node tells of itself. Standard library only: sent to nodes as it is, since Shoal may not be there yet."""

import fcntl
import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SIOCGIFADDR = 0x8915
NVIDIA_SMI_SEC = 30
TORCH_SEC = 120

GPU_FIELDS = ("name", "memory.total", "driver_version", "temperature.gpu")
GPU_TROUBLE = {
    "ecc.errors.uncorrected.volatile.total": "memory errors that could not be corrected",
    "retired_pages.pending": "pages of memory wait to be retired: reset the GPU",
    "remapped_rows.failure": "rows of memory could not be remapped",
    "clocks_throttle_reasons.hw_thermal_slowdown": "slowed down by heat",
    "clocks_throttle_reasons.hw_power_brake_slowdown": "slowed down by its power supply",
}
"""What nvidia-smi says of a GPU that is not well, by its field; not every driver knows every field."""

ASK_TORCH = "import torch; print(torch.cuda.device_count(), torch.version.cuda)"


class Inspector:
    """Lives on one node and answers questions about it."""

    def facts(self, packages: tuple[str, ...]) -> dict[str, Any]:
        """Return versions, host name, addresses, devices and room."""
        return {
            "host": socket.gethostname(),
            "versions": versions(packages),
            "interface": training_interface(),
            "gpus": gpus(),
            "torch_gpus": torch_gpus(),
            "free_bytes": {
                place: shutil.disk_usage(place).free for place in ("/tmp", "/dev/shm") if Path(place).is_dir()
            },
        }

    def now(self) -> float:
        """Return this node's time, in seconds since 1970."""
        return time.time()

    def sign(self, folder: str, name: str, expected: bytes) -> dict[str, Any]:
        """Read what the doctor wrote into a folder, or at a URI, and sign there.

        Returns:
            ``sees``: whether it is the same folder; ``error``: what was refused, if anything; ``free_bytes`` there.
        """
        found: dict[str, Any] = {"sees": False, "error": None, "free_bytes": None}
        try:
            if "://" in folder:
                self._sign_at(folder, name, expected, found)
            else:
                path = Path(folder)
                found["sees"] = (path / "doctor").is_file() and (path / "doctor").read_bytes() == expected
                if found["sees"]:
                    (path / name).write_bytes(expected)
                    found["free_bytes"] = shutil.disk_usage(path).free
        except Exception as error:  # told, whatever it is
            found["error"] = f"{type(error).__name__}: {error}"
        return found

    @staticmethod
    def _sign_at(uri: str, name: str, expected: bytes, found: dict[str, Any]) -> None:
        from shoal.storage.location import Location
        from shoal.storage.retry import Patience, patience

        with patience(Patience(total_sec=15)):
            place = Location.parse(uri)
            found["sees"] = (place / "doctor").read_bytes() == expected
            (place / name).write_bytes(expected)


def versions(packages: tuple[str, ...]) -> dict[str, str | None]:
    """Return the version of Python up to its minor one, and of each package; None: it is not installed."""
    found: dict[str, str | None] = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def interfaces() -> dict[str, str]:
    """Return the name of the network interface that has an IPv4 address, by that."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(any_socket.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has none
                continue
            found[socket.inet_ntoa(answer[20:24])] = name
    return found


def training_interface() -> dict[str, Any]:
    """Return which interface gloo takes: the one named in GLOO_SOCKET_IFNAME, or that of the host name's address.

    Returns:
        ``name``, ``address``, and its nominal ``bits_per_sec`` (None: not known).
    """
    known = interfaces()
    chosen = os.environ.get("GLOO_SOCKET_IFNAME", "").partition(",")[0]
    if chosen:
        address = next((address for address, name in known.items() if name == chosen), None)
    else:
        try:
            said = [str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
        except OSError:
            said = []
        address = next((address for address in said if address in known or address.startswith("127.")), "127.0.0.1")
    name = known.get(address or "", chosen or "lo")
    try:
        megabits = int(Path(f"/sys/class/net/{name}/speed").read_text())
    except (OSError, ValueError):
        megabits = -1
    return {"name": name, "address": address, "bits_per_sec": megabits * 1_000_000 if megabits > 0 else None}


def gpus() -> list[dict[str, Any]]:
    """Return every NVIDIA GPU as nvidia-smi sees it: GPU_FIELDS, and in ``trouble`` what is wrong with it."""
    table = _nvidia_smi(*GPU_FIELDS)
    trouble: list[list[str]] = [[] for _ in table]
    if table:
        for field, says in GPU_TROUBLE.items():
            for found, cells in zip(trouble, _nvidia_smi(field), strict=False):
                if _is_bad(cells[0]):
                    found.append(f"{says} ({field} {cells[0]})")
    return [
        dict(zip(GPU_FIELDS, cells, strict=True)) | {"trouble": said}
        for cells, said in zip(table, trouble, strict=True)
    ]


def torch_gpus() -> str | None:
    """Return ``COUNT CUDA``: how many GPUs torch can use here, and what it was built for; None where there are none."""
    if shutil.which("nvidia-smi") is None:
        return None
    mine = {
        name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"
    }  # Ray hides them from us
    try:
        asked = subprocess.run(
            [sys.executable, "-c", ASK_TORCH], env=mine, capture_output=True, text=True, timeout=TORCH_SEC, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"0 {type(error).__name__}"
    return asked.stdout.strip()


def _nvidia_smi(*fields: str) -> list[list[str]]:
    """Return a row of cells per GPU; none where there is no nvidia-smi, or where it does not know a field."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_SEC, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in asked.stdout.splitlines() if line.strip()]
    return [row for row in rows if len(row) == len(fields)]


def _is_bad(cell: str) -> bool:
    return cell in ("Active", "Yes") or (cell.isdecimal() and int(cell) > 0)
