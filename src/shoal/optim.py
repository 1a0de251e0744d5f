"""Optimizers for a phase. Learning rates are tensors, so that a captured step reads the scheduled value."""

from collections.abc import Sequence

import torch
from torch import nn

from shoal.schedule import OptimConfig


def build_optimizer(config: OptimConfig, phase: str, weights: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """Build the optimizer of one phase, fused into one kernel; its learning rate is set anew before every step."""
    override = config.phases.get(phase)
    betas = (override and override.betas) or config.betas
    lr = torch.tensor(base_learning_rate(config, phase), device=weights[0].device)
    match config.name:
        case "adam":
            return torch.optim.Adam(
                weights, lr, betas=betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
            )
        case "adamw":
            return torch.optim.AdamW(
                weights, lr, betas=betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
            )
        case "sgd":
            return torch.optim.SGD(weights, lr, momentum=betas[0], weight_decay=config.weight_decay, fused=True)


def base_learning_rate(config: OptimConfig, phase: str) -> float:
    """Return a phase's learning rate before the schedule."""
    override = config.phases.get(phase)
    return (override and override.lr) or config.lr


def clip_norm(config: OptimConfig, phase: str) -> float | None:
    """Return the largest gradient norm that a phase allows each network, if it has one."""
    override = config.phases.get(phase)
    return (override and override.clip) or config.clip


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Write a learning rate into the optimizer's tensors, without a wait for the device."""
    for group in optimizer.param_groups:
        group["lr"].fill_(value)
