"""What the spectral norm makes of a weight that changes: it divides it by u^T W v, and u and v change with it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from shoal.transplant.layout import SPECTRAL, Site


def sigma(tensors: Mapping[str, Tensor], group: str, site: Site) -> float:
    """Return what a weight of ``nets`` or ``ema`` is divided by; 1 without a spectral norm."""
    if SPECTRAL not in site.name:
        return 1.0
    u, v = (tensors[f"{group}/{site.layer}{SPECTRAL}.0.{vector}"].double() for vector in ("_u", "_v"))
    return float(u @ tensors[f"{group}/{site.name}"].double().flatten(1) @ v)


def converged(tensors: Mapping[str, Tensor], group: str, site: Site) -> dict[str, Tensor]:
    """Return what the power iteration would find for a weight of ``nets`` or ``ema``, by name; empty without a norm."""
    if SPECTRAL not in site.name:
        return {}
    weight = tensors[f"{group}/{site.name}"]
    U, _, Vh = torch.linalg.svd(weight.double().flatten(1), full_matrices=False)
    prefix = f"{group}/{site.layer}{SPECTRAL}.0."
    return {f"{prefix}_u": U[:, 0].to(weight.dtype), f"{prefix}_v": Vh[0].to(weight.dtype)}
