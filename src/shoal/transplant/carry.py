"""Every tensor of a trained model's state, taken through a map of the latent."""

from collections.abc import Mapping

import torch
from torch import Tensor

from shoal.transplant.layout import Layout, Site
from shoal.transplant.rules import LatentMap
from shoal.transplant.spectral import converged, sigma


def carry(
    tensors: Mapping[str, Tensor], layout: Layout, change: LatentMap, added: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return copies of a state's tensors, resized where the latent lies.

    Weights, their averages and the averages of gradients go through the same map, so that they stay averages of one
    another. Gradients go the other way round: what writes the latent is told by what reads it. The averages of their
    squares go through the map with its entries squared, as if gradients of different dimensions were independent.

    Args:
        tensors: named as in ``State.tensors``.
        layout: where the latent lies.
        change: of the latent.
        added: to the result, by ``<network>.<tensor>``; not to the optimizers' moments.
    """
    carried = {name: _carried(name, tensor, layout, change, added) for name, tensor in tensors.items()}
    groups = [group for group in ("nets", "ema") if any(name.startswith(f"{group}/") for name in tensors)]
    weights = [site for site in layout.sites.values() if site.is_weight]
    for group, site in ((group, site) for group in groups for site in weights if f"{group}/{site.name}" in tensors):
        bias = f"{group}/{site.layer}.bias"
        if site.role == "reads" and bias in tensors:
            seen = _seen_of(change.offset, tensors[f"{group}/{site.name}"].double(), site)
            carried[bias] = (carried[bias].double() + seen / sigma(tensors, group, site)).to(carried[bias].dtype)
        if layout.after < layout.before:
            carried |= converged(carried, group, site)
    return carried


def _carried(name: str, tensor: Tensor, layout: Layout, change: LatentMap, added: Mapping[str, Tensor]) -> Tensor:
    group, _, path = name.partition("/")
    is_moment = group == "optim"
    parameter, moment = path.split("/")[1:] if is_moment else (path, "")
    site = layout.sites.get(parameter)
    if site is None or tensor.shape != layout.shapes[parameter]:  # Adam's count of steps is a scalar
        return tensor.clone()
    if site.role == "iterates":
        # Zeros: new dimensions leave the norm as it is. After shrinking it is found anew.
        return _along(_cut(layout), tensor, site).to(tensor.dtype)
    matrix = change.lift.T if (site.role == "reads") != is_moment else change.project
    if moment.endswith("_sq"):
        matrix = matrix.square()
    resized = _along(matrix, tensor, site)
    if not is_moment and parameter in added:
        resized = resized + added[parameter]
    return resized.to(tensor.dtype).contiguous()


def _cut(layout: Layout) -> Tensor:
    return torch.eye(layout.after, layout.before, dtype=torch.float64)


def _along(matrix: Tensor, tensor: Tensor, site: Site) -> Tensor:
    """Return ``matrix`` [k, L] applied to each part of a tensor's latent axis, float64."""
    front = tensor.double().movedim(site.axis, 0)
    parts = front.reshape(site.parts, matrix.shape[1], -1)
    return (matrix @ parts).reshape(-1, *front.shape[1:]).movedim(0, site.axis)


def _seen_of(offset: Tensor, weight: Tensor, site: Site) -> Tensor:
    """Return what a layer makes of the same latent at every place, [outputs]; at a padded border it sees less."""
    seen = weight.movedim(site.axis, -1) @ offset.repeat(site.parts)
    seen = seen.reshape(len(seen), -1)
    # A transposed convolution spreads one place over its kernel, the others gather their kernel into one.
    return seen.mean(1) if site.axis == 0 else seen.sum(1)
