"""How well images come back from their codes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.regression import MeanSquaredError

from shoal.data import DataSet
from shoal.model import Model

BATCH = 500


@dataclass(frozen=True)
class Evaluation:
    """Measures of one split, as ``eval.json`` holds them."""

    split: str
    num_samples: int
    metrics: dict[str, float]


def evaluate(
    model: Model, data: DataSet, split: str = "test", progress: Callable[[int], None] = lambda samples: None
) -> Evaluation:
    """Reconstruct a whole split and measure it.

    ``quality/mse`` is the mean squared error over images and pixels in [0, 1]; ``quality/psnr`` the mean over images of
    10 log10(1 / mse) in dB.

    Raises:
        DataError: no such split.
        RunError: the objective does not reconstruct.
    """
    total = data.num_rows(split)
    # Float64 sums: in float32 the last digits would depend on the batch size.
    mse = MeanSquaredError().set_dtype(torch.float64)
    psnr = PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3)).set_dtype(torch.float64)
    for start in range(0, total, BATCH):
        pixels = torch.from_numpy(data.rows(split, start, min(start + BATCH, total)).copy())
        x, y = pixels.double() / 255, model.reconstruct(pixels).double()
        mse.update(y.flatten(), x.flatten())
        psnr.update(y, x)
        progress(len(pixels))
    return Evaluation(split, total, {"quality/mse": mse.compute().item(), "quality/psnr": psnr.compute().item()})
