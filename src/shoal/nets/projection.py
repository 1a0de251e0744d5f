"""The projection discriminator (Miyato & Koyama 2018, arXiv:1802.05637)."""

from torch import Tensor, nn

from shoal.nets.conditional import class_rows
from shoal.nets.network import Network, TakesLabels
from shoal.nets.spectral import normalise_weights


class Projection(TakesLabels):
    """Score features for an image and its class: w . phi + b + <v_y, phi> (arXiv:1802.05637, eq. 3).

    Args:
        linear: w and b, from [N, features] to [N, 1].
        num_classes: rows v_y to learn, drawn at first as torch draws a linear layer's.
    """

    def __init__(self, linear: nn.Linear, num_classes: int) -> None:
        super().__init__()
        self.linear = linear
        self.embedding = nn.Embedding(num_classes, linear.in_features)
        bound = linear.in_features**-0.5
        nn.init.uniform_(self.embedding.weight, -bound, bound)

    def forward(self, phi: Tensor, labels: Tensor | None) -> Tensor:
        """Return scores [N, 1] of features [N, features] and labels, int64 [N]."""
        score: Tensor = self.linear(phi)
        return score + (class_rows(self.embedding.weight, labels) * phi).sum(1, keepdim=True)


def project_onto_classes(net: Network, num_classes: int, *, spectral_norm: bool) -> Network:
    """Turn an encoder with one feature into a projection discriminator, by its last layer.

    Raises:
        TypeError: the encoder does not end in a linear layer.
    """
    *trunk, last = net
    if not isinstance(last, nn.Linear):
        raise TypeError(f"an encoder that ends in {type(last).__name__} has no projection; it must end in nn.Linear")
    projection = Projection(last, num_classes)
    if spectral_norm:
        normalise_weights(projection.embedding)
    return Network([*trunk, projection], {})
