"""How well images come back from their codes. Pixels in [0, 1], whatever the model's range."""

import torch
from torch import Tensor

from shoal.model import Model
from shoal.objectives import Reconstructs
from shoal.pixels import to_float, to_unit
from shoal.quality.images import Block, Sample, Workshare, exact
from shoal.render import inference

EXACT_DB = 100.0
"""The PSNR of an exact copy, whose own is infinite."""
SSIM_WINDOW = 11
"""Pixels of the window's side."""
SSIM_PIXELS = 8_192
"""At once: a convolution in float64 unfolds them 121 times, and what leaves the cache takes four times as long."""


def reconstruction_errors(model: Model, sample: Sample, share: Workshare, *, ssim: bool = True) -> dict[str, Tensor]:
    """Return for every image its squared error, PSNR in dB and SSIM, float64 [n].

    ``quality/mse`` is the mean over pixels, ``quality/psnr`` 10 log10(1 / mse), at most 100 dB, and ``quality/ssim``
    the structural similarity of Wang et al. 2004 (eq. 13) in their Gaussian window of 11 pixels around each pixel, the
    image mirrored at its borders; images of fewer pixels have none.
    """
    objective = model.objective
    assert isinstance(objective, Reconstructs)
    ssim = ssim and min(model.shape[1:]) >= SSIM_WINDOW

    def work(block: Block) -> dict[str, Tensor]:
        pixels = sample.pixels(block, model.device)
        with inference(objective.nets):
            again = objective.decode(objective.encode(to_float(pixels, model.config.data.range)))
        # The originals from their integers, not by way of the model's range: no rounding.
        x, y = exact(pixels) / 255, exact(to_unit(again, model.config.data.range))
        mse = (x - y).square().flatten(1).mean(1)
        found = {"quality/mse": mse, "quality/psnr": -10 * mse.clamp(min=10 ** (-EXACT_DB / 10)).log10()}
        return found | ({"quality/ssim": structural_similarity(x, y)} if ssim else {})

    return share.tables("reconstructing", len(sample), work)


def structural_similarity(x: Tensor, y: Tensor) -> Tensor:
    """Return the SSIM of each pair of images, float64 [n, C, H, W] in [0, 1]: [n]."""
    from torchmetrics.functional.image import structural_similarity_index_measure  # takes 1.5 s to import

    def of(x: Tensor, y: Tensor) -> Tensor:
        found = structural_similarity_index_measure(y, x, data_range=1.0, reduction="none")
        assert isinstance(found, Tensor)
        return found.reshape(len(x))

    few = max(1, SSIM_PIXELS // x[0].numel())
    pieces = (slice(start, start + few) for start in range(0, len(x), few))
    return torch.cat([of(x[rows], y[rows]) for rows in pieces])
