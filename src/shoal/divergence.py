"""Runs that are no longer numbers, refused before they overwrite good checkpoints."""

from collections.abc import Mapping
from math import isfinite

import torch
from torch import nn

from shoal.errors import DivergenceError
from shoal.state import State


def refuse_divergence(scalars: Mapping[str, float], state: State) -> None:
    """Stop a run whose losses or weights are no longer numbers, before it overwrites good checkpoints.

    The weights are looked at as well: the step that destroys them can still have a finite loss.
    """
    lost = [f"{name} is {value}" for name, value in scalars.items() if not isfinite(value)]
    lost += [
        f"a weight of the {name} is not finite"
        for name, net in state.nets.items()
        if not bool(torch.stack([weight.isfinite().all() for weight in _floats(net)]).all())
    ]
    if lost:
        raise DivergenceError(
            f"{lost[0]} at sample {state.samples}; the run has diverged. Lower optim.lr or set optim.clip;"
            " --resume goes on from the last checkpoint before it"
        )


def _floats(net: nn.Module) -> list[torch.Tensor]:
    return [tensor for tensor in (*net.parameters(), *net.buffers()) if tensor.is_floating_point()]
