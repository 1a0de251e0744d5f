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
NVIDIA_SMI_SEC = 60
"""For all questions to it together; each may take seconds where no process keeps the driver awake."""

TORCH_SEC = 120
FACTS_SEC = NVIDIA_SMI_SEC + TORCH_SEC

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
            **gpus(),
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


def gpus() -> dict[str, Any]:
    """Ask nvidia-smi about this machine's GPUs.

    Returns:
        ``gpus``: of each its GPU_FIELDS, and in ``trouble`` what is wrong with it; ``gpus_error``: why nvidia-smi
        could not tell, None where it did, or where there is none.
    """
    deadline = time.monotonic() + NVIDIA_SMI_SEC
    try:
        table = _nvidia_smi(deadline, *GPU_FIELDS)
    except FileNotFoundError:
        return {"gpus": [], "gpus_error": None}
    except (OSError, subprocess.SubprocessError) as error:
        return {"gpus": [], "gpus_error": _why(error)}
    trouble: list[list[str]] = [[] for _ in table]
    for field, says in GPU_TROUBLE.items() if table else ():
        try:
            answers = _nvidia_smi(deadline, field)
        except subprocess.CalledProcessError:  # not every driver knows every field
            continue
        except (OSError, subprocess.SubprocessError) as error:
            return {"gpus": [], "gpus_error": _why(error)}
        for found, cells in zip(trouble, answers, strict=False):
            if _is_bad(cells[0]):
                found.append(f"{says} ({field} {cells[0]})")
    seen = [
        dict(zip(GPU_FIELDS, cells, strict=True)) | {"trouble": said}
        for cells, said in zip(table, trouble, strict=True)
    ]
    return {"gpus": seen, "gpus_error": None}


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


def _nvidia_smi(deadline: float, *fields: str) -> list[list[str]]:
    """Return a row of cells per GPU.

    Raises:
        FileNotFoundError: there is no nvidia-smi.
        OSError, SubprocessError: it failed, or is not done at the deadline.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    left = max(0.0, deadline - time.monotonic())
    asked = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=left, check=True)
    rows = [[cell.strip() for cell in line.split(",")] for line in asked.stdout.splitlines() if line.strip()]
    return [row for row in rows if len(row) == len(fields)]


def _why(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no answer in {NVIDIA_SMI_SEC} s"
    if isinstance(error, subprocess.CalledProcessError):
        said = [line.strip() for line in f"{error.stderr}\n{error.stdout}".splitlines() if line.strip()]
        return said[-1] if said else f"exit code {error.returncode}"
    return f"{type(error).__name__}: {error}"


def _is_bad(cell: str) -> bool:
    return cell in ("Active", "Yes") or (cell.isdecimal() and int(cell) > 0)
