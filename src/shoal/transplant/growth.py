"""What new dimensions of a latent are given, so that the model says at first what it said, and can learn to use them.

Either what writes them or what reads them starts at zero: the other is learned from the first step on, and teaches it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import torch
from torch import Tensor

from shoal.objectives import LatentKind
from shoal.transplant.donor import Donor
from shoal.transplant.layout import SPECTRAL, Site
from shoal.transplant.subspace import whitened


@dataclass(frozen=True, kw_only=True)
class Filling:
    """What is written to new dimensions, and how it is read.

    ``random`` is normal and as large as the weights beside it; ``normal`` makes codes with mean 0 and variance 1.
    """

    writers: Literal["zero", "random", "normal"]
    readers: Literal["zero", "random"]


GROWTH: Mapping[LatentKind, Filling] = {
    "code": Filling(writers="random", readers="zero"),
    "linear": Filling(writers="random", readers="zero"),
    "prior": Filling(writers="normal", readers="zero"),
    # Mean and log-variance 0: the posterior is the prior, the KL 0, and the noise itself teaches what reads it.
    "posterior": Filling(writers="zero", readers="zero"),
    # Any other code would change which vector of the codebook is the nearest.
    "codebook": Filling(writers="zero", readers="random"),
}


def additions(donor: Donor, filling: Filling, key: str) -> dict[str, Tensor]:
    """Return what is added to tensors that were padded with zeros, by ``<network>.<tensor>``, float64.

    Args:
        donor: the trained model.
        filling: of its kind of latent.
        key: of the random numbers.
    """
    added: dict[str, Tensor] = {}
    if filling.readers == "random":
        for site in donor.layout.weights("reads"):
            added[site.name] = _placed(_as_large(donor, site, key), site, donor)
    if filling.writers == "zero":
        return added
    for site in donor.layout.weights("writes"):
        rows = _as_large(donor, site, key)
        inputs = donor.inputs(site.layer) if filling.writers == "normal" and site.parts == 1 else None
        if inputs is not None:
            sigma = donor.sigma(site)
            rows = sigma * whitened(rows / sigma, donor.tensor(site.name) / sigma, inputs)
        rows = _within_norm(rows, donor, site)
        added[site.name] = _placed(rows, site, donor)
        bias = donor.layout.sites.get(f"{site.layer}.bias")
        if inputs is not None and bias is not None:
            added[bias.name] = _placed(-(rows / donor.sigma(site)) @ inputs.mean(0), bias, donor)
    return added


def _as_large(donor: Donor, site: Site, key: str) -> Tensor:
    """Draw new entries, [parts * more, …] with the latent's axis first, as large as the old ones."""
    old = donor.tensor(site.name).movedim(site.axis, 0)
    seed = int.from_bytes(blake2b(f"{key}/{site.name}".encode(), digest_size=8).digest()) >> 1  # torch takes 63 bits
    more = donor.layout.after - donor.layout.before
    drawn = torch.randn(
        site.parts * more, *old.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return drawn * old.square().mean().sqrt()


def _within_norm(rows: Tensor, donor: Donor, site: Site) -> Tensor:
    """Return rows that leave a spectral norm as it is: no larger, and across the direction that is stretched most."""
    if SPECTRAL not in site.name:
        return rows
    flat, v = rows.flatten(1), donor.tensor(f"{site.layer}{SPECTRAL}.0._v")
    flat = flat - (flat @ v)[:, None] * v
    return (flat * min(1.0, 0.5 * donor.sigma(site) / float(torch.linalg.matrix_norm(flat, 2)))).view_as(rows)


def _placed(rows: Tensor, site: Site, donor: Donor) -> Tensor:
    """Return [parts * more, …] as the ends of the parts of a tensor of zeros, its axis where the site has it."""
    before, after = donor.layout.before, donor.layout.after
    whole = rows.new_zeros(site.parts, after, *rows.shape[1:])
    whole[:, before:] = rows.view(site.parts, after - before, *rows.shape[1:])
    return whole.flatten(0, 1).movedim(0, site.axis)
