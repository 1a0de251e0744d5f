"""Everything of a run that can be saved and resumed, listed once."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shoal.config import RunConfig
from shoal.errors import CheckpointError
from shoal.objectives import Objective, Phase, build
from shoal.optim import build_optimizer

EMA_RAMP = 0.05
"""Early on the half-life is this share of the samples seen, so that the average forgets the random start
(Karras et al. 2020, arXiv:2006.06676, appendix C)."""


def build_objective(config: RunConfig, shape: tuple[int, int, int], num_classes: int = 0) -> Objective:
    """Build the configured objective with the weights that its seed gives."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed if config.init_seed is None else config.init_seed)
        return build(config.objective, config.nets, shape, config.data.range, num_classes)


@dataclass
class State:
    """Networks, their average, the optimizers and the clock.

    Attributes:
        nets: the plain networks, never wrapped.
        ema: the averaged copies of the networks that inference needs; empty when no average is kept.
        optimizers: by phase.
        samples: images seen by the whole world; the clock, and the position in the data's order.
        batches: global batches seen; the number that keys the noise of the next one.
    """

    nets: Mapping[str, nn.Module]
    ema: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    phases: tuple[Phase, ...]
    samples: int = 0
    batches: int = 0

    @classmethod
    def fresh(cls, objective: Objective, config: RunConfig) -> "State":
        """Return the state at sample 0 for networks that were just built."""
        followed = objective.inference if config.ema.half_life_samples else ()
        return cls(
            nets=objective.nets,
            ema={name: copy.deepcopy(objective.nets[name]).requires_grad_(False).eval() for name in followed},
            optimizers={
                phase.name: build_optimizer(config.optim, phase.name, _parameters(objective.nets, phase))
                for phase in objective.phases
            },
            phases=tuple(objective.phases),
        )

    @torch.no_grad()
    def update_ema(self, batch: int, half_life_samples: int) -> None:
        """Move the average towards the weights by what ``batch`` images are worth."""
        half_life = min(half_life_samples, EMA_RAMP * self.samples)
        keep = 0.5 ** (batch / half_life)
        for name, average in self.ema.items():
            net = self.nets[name]
            weights: list[Tensor] = list(net.parameters())
            if weights:  # a codebook has buffers only
                torch._foreach_lerp_(list(average.parameters()), weights, 1 - keep)
            for old, new in zip(average.buffers(), net.buffers(), strict=True):
                old.copy_(new)

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by name: ``nets/…``, ``ema/…``, ``optim/<phase>/<parameter>/<moment>``. Not copies."""
        named: dict[str, Tensor] = {}
        for group, modules in (("nets", self.nets), ("ema", self.ema)):
            for name, module in modules.items():
                named |= {f"{group}/{name}.{key}": tensor for key, tensor in module.state_dict().items()}
        for phase, parameter, weight in self._optimized():
            for moment, tensor in self.optimizers[phase].state[weight].items():
                if tensor is not None:
                    named[f"optim/{phase}/{parameter}/{moment}"] = tensor
        return named

    @torch.no_grad()
    def load_tensors(self, named: Mapping[str, Tensor]) -> None:
        """Put saved tensors in place.

        Raises:
            CheckpointError: a network's tensor is missing, superfluous or of another shape.
        """
        own = {name: tensor for name, tensor in self.tensors().items() if not name.startswith("optim/")}
        saved = {name: tensor for name, tensor in named.items() if not name.startswith("optim/")}
        for name in own.keys() ^ saved.keys():
            raise CheckpointError(f"tensor {name} is {'missing from' if name in own else 'only in'} the checkpoint")
        for name, tensor in own.items():
            if tensor.shape != saved[name].shape:
                raise CheckpointError(
                    f"tensor {name} is {list(saved[name].shape)} in the checkpoint and {list(tensor.shape)} here"
                )
            tensor.copy_(saved[name])
        moments: dict[tuple[str, str], dict[str, Tensor]] = {}
        for name, tensor in named.items():
            if name.startswith("optim/"):
                _, phase, parameter, moment = name.split("/")
                moments.setdefault((phase, parameter), {})[moment] = tensor
        for phase, parameter, weight in self._optimized():
            of_weight = moments.get((phase, parameter), {})
            self.optimizers[phase].state[weight] = {
                moment: tensor.to(weight.device, copy=True) for moment, tensor in of_weight.items()
            }

    def _optimized(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        for phase in self.phases:
            for name in phase.trains:
                for key, weight in self.nets[name].named_parameters():
                    yield phase.name, f"{name}.{key}", weight


def _parameters(nets: Mapping[str, nn.Module], phase: Phase) -> list[nn.Parameter]:
    return [weight for name in phase.trains for weight in nets[name].parameters()]
