"""A plug-in with models whose measures are known beforehand."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shoal.nets import NetConfig
from shoal.nets.family import ImageShape
from shoal.noise import Noise
from shoal.objectives import Batch, Objective, ObjectiveConfig, Phase, Scalars
from shoal.pixels import PixelRange


class PainterConfig(ObjectiveConfig):
    name: Literal["painter"] = "painter"
    fault: Literal["none", "deaf", "collapsed", "broken"] = "none"


class CopyConfig(ObjectiveConfig):
    name: Literal["copy"] = "copy"
    off: float = 0.0


class Known:
    """Learns nothing."""

    phases: Sequence[Phase] = ()
    inference: tuple[str, ...] = ()
    nets: Mapping[str, nn.Module]

    def __init__(
        self, config: ObjectiveConfig, nets: NetConfig, shape: ImageShape, pixel_range: PixelRange, num_classes: int = 0
    ) -> None:
        self.nets = {}
        self._shape = shape

    def loss(self, phase: str, batch: Batch, noise: Noise) -> tuple[Tensor, Scalars]:
        raise NotImplementedError


class Painter(Known, Objective):
    """Generates just what the data set is painted from: noise with one bright quadrant, the one asked for.

    ``fault`` spoils it: ``deaf`` paints any class, ``collapsed`` the first one only, ``broken`` no numbers.
    """

    Config = PainterConfig
    needs_labels = True

    def __init__(self, config: PainterConfig, *rest: Any, **more: Any) -> None:
        super().__init__(config, *rest, **more)
        self._fault = config.fault

    def sample(self, num: int, noise: Noise, labels: Tensor | None = None) -> Tensor:
        side = self._shape[1]
        images = (noise.uniform("pixels", side * side) * 60).floor().view(num, 1, side, side)
        classes = (noise.uniform("class", 1)[:, 0] * 4).long()
        fault = self._fault
        if labels is not None and fault != "deaf":
            classes = torch.zeros_like(labels) if fault == "collapsed" else labels
        for image, label in zip(images, classes.tolist(), strict=True):
            top, left = label // 2 * side // 2, label % 2 * side // 2
            image[:, top : top + side // 2, left : left + side // 2] += 180
        return images / 255 * (torch.nan if fault == "broken" else 1)


class Copy(Known, Objective):
    """Gives back every image, with ``off`` added to each pixel."""

    Config = CopyConfig

    def __init__(self, config: CopyConfig, *rest: Any, **more: Any) -> None:
        super().__init__(config, *rest, **more)
        self._off = config.off

    def encode(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def decode(self, z: Tensor) -> Tensor:
        return z.view(-1, *self._shape) + self._off
