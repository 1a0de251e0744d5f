"""Spectral normalisation (Miyato et al. 2018, arXiv:1802.05957): no layer stretches its input by more than one."""

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from shoal.nets.network import Network

WEIGHTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)


def normalise_weights(net: nn.Module) -> None:
    """Divide each weight by its largest singular value, which one power iteration per training pass follows.

    The iteration's vectors are buffers: ``_u`` as long as the layer's outputs, ``_v`` as its inputs. Initialise first;
    a weight of zeros has no singular value to divide by.
    """
    for layer in list(net.modules()):
        if isinstance(layer, WEIGHTED):
            spectral_norm(layer)


def normalised(net: Network) -> Network:
    """Apply ``normalise_weights`` to a whole network, and say anew where the latent lies; return it."""
    normalise_weights(net)
    axes: dict[str, int] = {}
    for name, axis in net.latent_axes.items():
        layer, _, tensor = name.rpartition(".")
        if tensor == "weight":
            inside = f"{layer}.parametrizations.weight"
            axes |= {f"{inside}.original": axis, f"{inside}.0.{('_u', '_v')[axis]}": 0}
        else:
            axes[name] = axis
    net.latent_axes = axes
    return net
