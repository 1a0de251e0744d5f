"""Residual blocks with the activation before the convolution (He et al. 2016, arXiv:1603.05027)."""

from collections.abc import Callable
from math import sqrt
from typing import Literal

from torch import Tensor, nn

from shoal.nets.network import Layers, TakesLabels
from shoal.nets.resample import DownConv, UpConv


class Residual(TakesLabels):
    """Norm, activation, 3x3 convolution, twice, beside a shortcut; at the same, twice or half the size.

    Where the size changes it is the block of Miyato et al. 2018 (arXiv:1802.05957, appendix): nearest neighbour before
    the first convolution, or the mean of 2x2 after the second. The shortcut changes the size alike, and the channels
    by a 1x1 convolution where they differ.

    A branch starts at zero: its last convolution does, and the first is He's, scaled by depth^-1/2 (Fixup: Zhang et al.
    2019, arXiv:1901.09321), which trains without any norm too.

    Args:
        before: channels that come in.
        after: channels that go out.
        norm: builds a norm for so many channels.
        activate: builds an activation.
        size: the way that height and width go.
        depth: residual blocks in the whole network.
        zero: whether the branch starts at zero; spectral norm can't scale a weight of zeros.
    """

    def __init__(
        self,
        before: int,
        after: int,
        *,
        norm: Callable[[int], nn.Module],
        activate: Callable[[], nn.Module],
        size: Literal["same", "up", "down"] = "same",
        depth: int = 1,
        zero: bool = True,
    ) -> None:
        super().__init__()
        inner = before if size == "down" else after  # the fewer channels, where the image is larger
        first = UpConv(before, inner) if size == "up" else nn.Conv2d(before, inner, 3, padding=1)
        last = DownConv(inner, after) if size == "down" else nn.Conv2d(inner, after, 3, padding=1)
        self.branch = Layers(norm(before), activate(), first, norm(inner), activate(), last)
        # A 1x1 convolution commutes with both ways to resample: done where the image is smaller, it costs a quarter.
        match = [nn.Conv2d(before, after, 1, bias=False)] if before != after else []
        self.shortcut = nn.Sequential(
            *([nn.AvgPool2d(2)] if size == "down" else []),
            *match,
            *([nn.Upsample(scale_factor=2)] if size == "up" else []),
        )
        for layer in match:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        nn.init.normal_(first.weight, 0.0, sqrt(2 / (9 * before * depth)))
        if zero:
            nn.init.zeros_(last.weight)
        for conv in (first, last):
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map [N, before, H, W] to [N, after, H', W']."""
        added: Tensor = self.shortcut(x) + self.branch(x, labels)
        return added
