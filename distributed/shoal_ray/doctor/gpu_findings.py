"""What to say of the GPUs of a machine."""

from collections.abc import Iterator, Mapping
from typing import Any

from shoal_ray.doctor.finding import Finding


def gpu_findings(where: str, told: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what ``on_node.gpus`` tells of each GPU of a machine; nothing where there is no nvidia-smi."""
    if told["gpus_error"]:
        yield Finding(
            f"gpus of {where}",
            f"nvidia-smi failed: {told['gpus_error']}",
            good=False,
            remedy="run nvidia-smi there; dmesg says whether the GPU was lost: restart the machine, or leave it out",
        )
    for index, gpu in enumerate(told["gpus"]):
        memory = gpu["memory.total"]
        size = f"{int(memory) / 1024:.0f} GiB" if memory.isdecimal() else memory
        found = f"{gpu['name']}, {size}, driver {gpu['driver_version']}, {gpu['temperature.gpu']} °C"
        trouble = "; ".join(gpu["trouble"])
        yield Finding(
            f"gpu {index} of {where}",
            f"{found}: {trouble or 'healthy'}",
            good=not trouble,
            remedy="look at nvidia-smi -q there; leave this GPU out until it is well",
            facts=dict(gpu),
        )


def ray_gpu_finding(where: str, offered: float, told: Mapping[str, Any]) -> Finding | None:
    """Return what is wrong where Ray or torch sees other GPUs than ``on_node``'s facts tell of."""
    there = len(told["gpus"])
    count, _, cuda = (told["torch_gpus"] or "0").partition(" ")
    if not there and offered and not told["gpus_error"]:  # which is said already
        found = f"Ray offers {offered:g}, and none is seen there"
        remedy = "install nvidia-smi with the driver, or start Ray there with --num-gpus 0"
    elif not there:
        return None
    elif count != str(there):
        found = f"torch (built for CUDA {cuda or '?'}) can use {count} of {there}"
        remedy = "install a driver that is new enough, or a torch that is old enough"
    elif int(offered) != there:
        found, remedy = f"Ray offers {offered:g} of {there}", f"start Ray there with --num-gpus {there}"
    else:
        return None
    return Finding(f"gpus of {where}", found, good=False, remedy=remedy)
