"""One optimisation step: every phase that is due, each trained network behind DDP."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from shoal.config import RunConfig
from shoal.noise import Noise
from shoal.objectives import Batch, Objective, Phase
from shoal.optim import base_learning_rate, clip_norm, set_learning_rate
from shoal.state import State
from shoal.world import World


class Engine:
    """Takes steps of an objective on this worker's rows.

    For each phase the objective is viewed with the phase's trained networks wrapped in DDP and the others plain and
    frozen, which halves the cost of a generator's turn. ``state`` always holds plain networks.
    """

    def __init__(self, objective: Objective, state: State, config: RunConfig, world: World) -> None:
        self._state = state
        self._config = config
        self._world = world
        self._nets: Mapping[str, nn.Module] = objective.nets
        trained = {name for phase in objective.phases for name in phase.trains}
        wrapped = {name: world.wrap(net) for name, net in objective.nets.items() if name in trained}
        self._views = {
            phase.name: objective.using({name: wrapped[name] for name in phase.trains}) for phase in objective.phases
        }
        self._rows = world.slice(config.batch)
        # DDP averages over workers what should be a mean over images: uneven slices weigh by their rows.
        self._weight = (self._rows.stop - self._rows.start) * world.size / config.batch

    def step(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Train every due phase on one global batch and advance the clock; return what the phases report."""
        state, optim = self._state, self._config.optim
        now = state.samples + self._config.batch
        factor = optim.factor(min(now, self._config.duration_samples), self._config.duration_samples)
        reported: dict[str, Tensor] = {}
        for phase in state.phases:
            if state.batches % phase.every:
                continue
            reported |= self._descend(phase, batch, noise)
            limit = clip_norm(optim, phase.name)
            if limit is not None:
                for name in phase.trains:
                    nn.utils.clip_grad_norm_(self._nets[name].parameters(), limit)
            optimizer = state.optimizers[phase.name]
            set_learning_rate(optimizer, base_learning_rate(optim, phase.name) * factor)
            optimizer.step()
            optimizer.zero_grad()
        state.samples = now
        state.batches += 1
        if state.ema:
            state.update_ema(self._config.batch, self._config.ema.half_life_samples)
        return reported

    def learning_rates(self) -> dict[str, float]:
        """Return the learning rate that each phase used last; ``optim/lr`` alone where there is one phase."""
        rates = {name: float(optimizer.param_groups[0]["lr"]) for name, optimizer in self._state.optimizers.items()}
        return {"optim/lr" if len(rates) == 1 else f"optim/lr_{name}": rate for name, rate in rates.items()}

    def settle(self, batch: Batch, noise: Noise) -> None:
        """Run every phase once without a step, and leave no trace of it.

        DDP lays out its buckets anew after the first backward pass, which at three and more ranks changes the order of
        summation. Done before the first step of a fresh run and of a resumed one alike, it cannot tell them apart. As
        batch 0 for both: a penalty that comes every few batches would change the order in which gradients arrive.
        """
        if self._world.size == 1:
            return
        buffers = {name: [buffer.clone() for buffer in net.buffers()] for name, net in self._nets.items()}
        first = replace(batch, index=0)
        for phase in self._state.phases:
            self._descend(phase, first, noise)
            self._state.optimizers[phase.name].zero_grad()
        with torch.no_grad():
            for name, net in self._nets.items():
                for buffer, kept in zip(net.buffers(), buffers[name], strict=True):
                    buffer.copy_(kept)

    def _descend(self, phase: Phase, batch: Batch, noise: Noise) -> Mapping[str, Any]:
        for name, net in self._nets.items():
            net.requires_grad_(name in phase.trains)
        loss, scalars = self._views[phase.name].loss(phase.name, batch, noise)
        self._world.backward(loss * self._weight)
        return scalars
