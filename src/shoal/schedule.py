"""What is due at which sample, and the learning rate there. The only clock is images seen by the whole world."""

import math
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from shoal.strict import Count, Strict


def due(every_samples: int, before: int, now: int) -> bool:
    """Tell whether a multiple of ``every_samples`` lies in (before, now]; 0 means never."""
    return every_samples > 0 and now // every_samples > before // every_samples


Shape = Literal["constant", "cosine", "linear"]


def learning_rate_factor(
    samples: int,
    duration_samples: int,
    *,
    shape: Shape,
    warmup_samples: int,
    final_factor: float,
    decay_share: float = 1.0,
) -> float:
    """Return what the base learning rate is multiplied by at a sample, in [0, 1].

    Rises linearly over ``warmup_samples``, stays, and over the last ``decay_share`` of the duration follows ``shape``
    from 1 to ``final_factor`` at ``duration_samples`` (cosine: Loshchilov & Hutter 2017, eq. 5, without restarts).
    """
    if samples < warmup_samples:
        return samples / warmup_samples
    start = max(warmup_samples, round(duration_samples * (1 - decay_share)))
    if shape == "constant" or samples <= start:
        return 1.0
    progress = min(1.0, (samples - start) / max(1, duration_samples - start))
    falling = 0.5 * (1 + math.cos(math.pi * progress)) if shape == "cosine" else 1 - progress
    return final_factor + (1 - final_factor) * falling


Decay = Annotated[float, Field(ge=0, lt=1)]


class PhaseOptimConfig(Strict):
    """What one phase of an objective does otherwise than the rest, e.g. a slower discriminator."""

    lr: PositiveFloat | None = None
    betas: tuple[Decay, Decay] | None = None
    clip: PositiveFloat | None = None


class OptimConfig(Strict):
    """How weights are updated. Durations count samples, so one setting fits any number of workers."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: PositiveFloat = Field(1e-3, description="base learning rate")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="Adam's averages; SGD takes the first as momentum")
    eps: PositiveFloat = 1e-8
    weight_decay: float = Field(0.0, ge=0)
    clip: PositiveFloat | None = Field(None, description="largest gradient norm of each network")
    schedule: Shape = Field("constant", description="of the learning rate, over duration_samples")
    warmup_samples: Count = Field(0, ge=0)
    final_factor: float = Field(0.0, ge=0, le=1, description="the learning rate's last value, as a share of lr")
    decay_share: float = Field(1.0, gt=0, le=1, description="the last share of the duration, over which it falls")
    phases: dict[str, PhaseOptimConfig] = Field({}, description="overrides, e.g. optim.phases.discriminator.lr")

    def factor(self, samples: int, duration_samples: int) -> float:
        """Return the learning rate at a sample as a share of ``lr``."""
        return learning_rate_factor(
            samples,
            duration_samples,
            shape=self.schedule,
            warmup_samples=self.warmup_samples,
            final_factor=self.final_factor,
            decay_share=self.decay_share,
        )
