"""What to say of the GPUs of a machine."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shoal_ray.doctor.finding import Finding


def gpu_findings(where: str, gpus: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Yield what nvidia-smi says of each GPU of a machine; nothing where there are none."""
    for index, gpu in enumerate(gpus):
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


def ray_gpu_finding(where: str, offered: float, gpus: Sequence[object], torch: str | None) -> Finding | None:
    """Return what is wrong where Ray or torch sees fewer GPUs than there are."""
    if not gpus:
        return None
    count, _, cuda = (torch or "0").partition(" ")
    if count != str(len(gpus)):
        found = f"torch (built for CUDA {cuda or '?'}) can use {count} of {len(gpus)}"
        remedy = "install a driver that is new enough, or a torch that is old enough"
    elif int(offered) != len(gpus):
        found, remedy = f"Ray offers {offered:g} of {len(gpus)}", f"start Ray there with --num-gpus {len(gpus)}"
    else:
        return None
    return Finding(f"gpus of {where}", found, good=False, remedy=remedy)
