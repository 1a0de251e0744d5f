"""Which way each measure is better."""

from typing import Literal

Better = Literal["lower", "higher"]

BETTER: dict[str, Better] = {
    "quality/mse": "lower",
    "quality/psnr": "higher",
    "quality/ssim": "higher",
    "quality/nll": "lower",
    "quality/elbo": "higher",
    "quality/code_usage": "higher",
    "quality/perplexity": "higher",
    "fid": "lower",
    "fd": "lower",
    "kd": "lower",
    "is": "higher",
    "precision": "higher",
    "recall": "higher",
    "density": "higher",
    "coverage": "higher",
    "agreement": "higher",
}
"""By a measure's name, or by its family where an extractor's id follows.

Active units and bits per image say how a model codes, not how well.
"""


def better(name: str) -> Better | None:
    """Return which way a measure is better; None where neither is, or where the measure is not known."""
    return BETTER.get(name) or BETTER.get(name.partition("/")[0])
