"""Layers that know the class of each image."""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from shoal.nets.network import TakesLabels


def class_rows(table: Tensor, labels: Tensor | None) -> Tensor:
    """Return the rows [N, units] of a table [num_classes, units] that belong to labels, int64 [N]."""
    assert labels is not None, "a network built for classes is called with labels"
    return embedding(labels, table)


class ConditionalNorm(TakesLabels):
    """A norm with a gain and a bias per class.

    Dumoulin et al. 2017, arXiv:1610.07629, section 2.2, and de Vries et al. 2017, arXiv:1707.00683. Gains start at one
    and biases at zero, so at first every class gets what the norm without classes gives.

    Args:
        norm: of [N, channels, H, W], without gain and bias of its own.
        num_classes: rows to learn.
        channels: of the images.
    """

    def __init__(self, norm: nn.Module, num_classes: int, channels: int) -> None:
        super().__init__()
        self.norm = norm
        self.gain = nn.Parameter(torch.ones(num_classes, channels))
        self.bias = nn.Parameter(torch.zeros(num_classes, channels))

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Normalise ``x`` [N, channels, H, W] and give each image the gain and bias of its label, int64 [N]."""
        gain = class_rows(self.gain, labels)[:, :, None, None]
        bias = class_rows(self.bias, labels)[:, :, None, None]
        return torch.addcmul(bias, self.norm(x), gain)


class ClassBias(TakesLabels):
    """Add a vector per class to what a linear layer gives.

    The same as a one-hot label beside the layer's input (Mirza & Osindero 2014, arXiv:1411.1784), and drawn at first
    as torch would draw that layer's additional columns.

    Args:
        linear: the layer that it follows.
        num_classes: vectors to learn.
    """

    def __init__(self, linear: nn.Linear, num_classes: int) -> None:
        super().__init__()
        bound = (linear.in_features + num_classes) ** -0.5
        self.bias = nn.Parameter(torch.empty(num_classes, linear.out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Add to ``x`` [N, units] the vectors of ``labels``, int64 [N]."""
        return x + class_rows(self.bias, labels)


def conditioned(linear: nn.Linear, num_classes: int) -> list[nn.Module]:
    """Return a linear layer, with the bias of each class after it where there are classes."""
    return [linear, ClassBias(linear, num_classes)] if num_classes else [linear]
