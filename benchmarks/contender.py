"""What another project's training run needs of the data, and what it leaves behind to be timed and judged."""

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from shoal.data import DataSet
from shoal.quality.images import Sample

OUTPUTS = "outputs.safetensors"
METRICS = "metrics.jsonl"
JUDGED_AT_ONCE = 500


class Ticks:
    """Tells the time of every so many training images, in a file of rows as a Shoal run writes them.

    Args:
        path: the file.
        every_samples: images from one row to the next.
    """

    def __init__(self, path: Path, every_samples: int) -> None:
        self._file = path.open("w", buffering=1)
        self._every = every_samples
        self._samples = 0

    def add(self, num: int) -> None:
        """Count ``num`` more images."""
        before, self._samples = self._samples, self._samples + num
        if self._samples // self._every > before // self._every:
            self._file.write(json.dumps({"samples": self._samples}) + "\n")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the flags that every contender has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="data set of 28x28 grey images")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives metrics.jsonl and the outputs")
    parser.add_argument("--samples", type=int, required=True, help="images to train on, over all epochs")
    parser.add_argument("--every-samples", type=int, required=True, help="images between two rows of metrics.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--judged", type=int, default=0, help="images to reconstruct and to generate; 0: leave none")
    parser.add_argument("--others-path", type=Path, required=True, help="folder of packages that Shoal does not need")
    return parser


def load(name: str, folder: Path) -> Any:
    """Import a module, from ``folder`` only what is installed nowhere else; its types are unknown."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return importlib.import_module(name)


def training_pixels(data: DataSet, num_samples: int, seed: int) -> tuple[Tensor, int]:
    """Return what to train on and for how many epochs: uint8 [n, C, H, W].

    That is the whole training split, or as many of its images as are asked for if they are fewer.
    """
    rows = data.num_rows("train")
    pixels = torch.from_numpy(data.rows("train", 0, rows))
    if num_samples >= rows:
        return pixels, num_samples // rows
    chosen = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[:num_samples]
    return pixels[chosen], 1


def test_images(data: DataSet, num: int) -> Tensor:
    """Return the test images that are judged, float [num, C, H, W] in [0, 1]."""
    return torch.from_numpy(data.fetch(Sample.of(data, "test", num).ids)).float() / 255


def parts(values: Tensor) -> list[Tensor]:
    """Return ``values`` [n, …] in parts that fit into memory."""
    return [values[start : start + JUDGED_AT_ONCE] for start in range(0, len(values), JUDGED_AT_ONCE)]


def in_parts(make: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Apply a model to ``inputs`` [n, …], a part at a time and without gradients."""
    with torch.no_grad():
        return torch.cat([make(part).cpu() for part in parts(inputs)])


def leave(folder: Path, facts: dict[str, str], **images: Tensor) -> None:
    """Write what is judged: ``reconstructions`` of the test images, in their order, and ``samples``, in [0, 1]."""
    save_file({name: values.float().contiguous() for name, values in images.items()}, folder / OUTPUTS, facts)


def num_parameters(*modules: Any) -> str:
    """Return how many numbers the networks learn."""
    return str(sum(weights.numel() for module in modules for weights in module.parameters()))
