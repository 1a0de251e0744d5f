"""What a network is: layers one after another, some of which take labels, and where in them the latent lies."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn


class TakesLabels(nn.Module):
    """A layer whose ``forward(x, labels)`` depends on the class, e.g. a conditional norm."""


class Layers(nn.Sequential):
    """Layers one after another; those that take labels are given them."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Apply the layers to ``x`` [N, …]; ``labels`` is int64 [N] for layers built for classes."""
        for layer in self:
            x = layer(x, labels) if isinstance(layer, TakesLabels) else layer(x)
        return x


class Network(Layers):
    """A whole network, which knows where the latent lies in it.

    Attributes:
        latent_axes: for each tensor of ``state_dict`` that a larger latent makes larger, the axis along which it does.
            It is what lets a search change the latent size of a trained network.
    """

    def __init__(self, layers: Iterable[nn.Module], latent_axes: Mapping[str, int]) -> None:
        super().__init__(*layers)
        self.latent_axes = dict(latent_axes)
