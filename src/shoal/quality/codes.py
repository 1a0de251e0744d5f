"""How a model uses its codebook, and how many bits an image costs."""

from math import log, log2

import torch
from torch import Tensor

from shoal.model import Model
from shoal.objectives import HasCodebook
from shoal.pixels import to_float
from shoal.quality.images import Block, Sample, Workshare
from shoal.quality.measure import Measure
from shoal.render import inference


def code_measures(model: Model, sample: Sample, share: Workshare) -> dict[str, Measure]:
    """Return what the entries that images are written in tell.

    ``quality/code_usage``: the share of entries that occur at all. ``quality/perplexity``: 2 to the entropy of their
    distribution: as many entries, used equally, would say as much. ``quality/bits_per_image``: tokens x log2 K, the
    cost with a fixed length; ``quality/coded_bits_per_image``: with an ideal entropy code for that distribution.
    """
    objective = model.objective
    assert isinstance(objective, HasCodebook)

    def work(block: Block) -> dict[str, Tensor]:
        x = to_float(sample.pixels(block, model.device), model.config.data.range)
        with inference(objective.nets):
            return {"codes": objective.code_indices(x)}

    codes = share.tables("encoding", len(sample), work)["codes"].long()
    counts = torch.bincount(codes.flatten(), minlength=objective.num_codes).double()
    entropy_bits = torch.special.entr(counts / counts.sum()).sum().item() / log(2)
    values = {
        "code_usage": (counts > 0).double().mean().item(),
        "perplexity": 2**entropy_bits,
        "bits_per_image": codes.shape[1] * log2(objective.num_codes),
        "coded_bits_per_image": codes.shape[1] * entropy_bits,
    }
    return {f"quality/{name}": Measure(value, len(codes)) for name, value in values.items()}
