"""Which tensors of a model have the latent in them, and what their layers do with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from shoal.config import RunConfig
from shoal.errors import ConfigError
from shoal.nets.family import ImageShape
from shoal.objectives import LatentAxis, LatentKind, Objective
from shoal.state import build_objective

SPECTRAL = ".parametrizations.weight"
"""Between a layer's name and those of the tensors from which the spectral norm makes its weight."""

Role = Literal["reads", "writes", "iterates"]
"""What happens to a latent at a tensor: its layer takes it in, its layer gives it or the tensor holds it, or the tensor
follows the spectral norm of the layer's weight."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A tensor with ``parts`` latents, one after the other, along one axis.

    Attributes:
        name: ``<network>.<tensor>``.
        layer: ``<network>.<module>``, the module that uses it.
        is_weight: whether it has an axis besides the latent's, so that it belongs to inputs and outputs of a layer.
    """

    name: str
    layer: str
    axis: int
    parts: int
    role: Role
    is_weight: bool


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the latent lies in a model before and after.

    Attributes:
        kind: what the latent is.
        sites: by name.
        before, after: sizes of the latent.
        shapes: of every tensor of the networks before, by ``<network>.<tensor>``.
    """

    kind: LatentKind
    sites: Mapping[str, Site]
    before: int
    after: int
    shapes: Mapping[str, tuple[int, ...]]

    def weights(self, role: Role) -> list[Site]:
        """Return the sites of one role that are weights or tables."""
        return [site for site in self.sites.values() if site.role == role and site.is_weight]


def read_layout(old: RunConfig, new: RunConfig, shape: ImageShape, num_classes: int) -> Layout:
    """Compare the networks of two configurations, by shapes alone.

    Raises:
        ConfigError: they differ otherwise than in the size of the latent.
    """
    with torch.device("meta"):
        one, two = build_objective(old, shape, num_classes), build_objective(new, shape, num_classes)
    axes, shapes, others = one.latent_axes(), _shapes(one), _shapes(two)
    before, after = old.nets.latent, new.nets.latent
    for name in [*shapes, *(name for name in others if name not in shapes)]:
        given, asked = shapes.get(name), others.get(name)
        if given is None or asked is None or asked != _resized(given, axes.get(name), before, after):
            raise ConfigError(
                f"tensor {name} is {_said(given)} in the trained model and would be {_said(asked)}; only nets.latent"
                f" ({before} -> {after}), where the objective declares it (latent_nets), can change in a trained model:"
                " leave the other keys of nets and objective as they were, or train a new model"
            )
    return Layout(
        kind=one.latent_kind,
        sites={name: _site(one, name, axis, len(shapes[name])) for name, axis in axes.items()},
        before=before,
        after=after,
        shapes=shapes,
    )


def check_tensors(tensors: Mapping[str, Tensor], layout: Layout) -> None:
    """Check that the networks' tensors are those of the old configuration.

    Raises:
        ConfigError: one is missing or of another shape.
    """
    for name, shape in layout.shapes.items():
        tensor = tensors.get(f"nets/{name}")
        if tensor is None or tuple(tensor.shape) != shape:
            given = None if tensor is None else tuple(tensor.shape)
            raise ConfigError(
                f"tensor nets/{name} is {_said(given)} and the model's configuration makes it {_said(shape)}; give the"
                " configuration that the tensors were trained with"
            )


def _resized(shape: tuple[int, ...], axis: LatentAxis | None, before: int, after: int) -> tuple[int, ...] | None:
    """Return the shape that another latent gives a tensor, or None where the latent is not all of the axis."""
    if axis is None:
        return shape
    if shape[axis.axis] != axis.parts * before:
        return None
    return (*shape[: axis.axis], axis.parts * after, *shape[axis.axis + 1 :])


def _site(objective: Objective, name: str, axis: LatentAxis, dimensions: int) -> Site:
    net, _, path = name.partition(".")
    module, found, inside = path.partition(SPECTRAL)
    if not found:
        module, _, inside = path.rpartition(".")
    layer = objective.nets[net].get_submodule(module)
    role: Role = "writes"
    if found and inside.endswith(("._u", "._v")):
        role = "iterates"
    elif dimensions > 1 and isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
        # A transposed convolution's weight is [inputs, outputs, …], that of other layers [outputs, inputs, …].
        inputs = 0 if getattr(layer, "transposed", False) else 1
        role = "reads" if axis.axis == inputs else "writes"
    return Site(
        name=name,
        layer=f"{net}.{module}" if module else net,
        axis=axis.axis,
        parts=axis.parts,
        role=role,
        is_weight=dimensions > 1,
    )


def _shapes(objective: Objective) -> dict[str, tuple[int, ...]]:
    return {
        f"{net}.{name}": tuple(tensor.shape)
        for net, module in objective.nets.items()
        for name, tensor in module.state_dict().items()
    }


def _said(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))
