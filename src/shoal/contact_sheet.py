"""One picture of several models: the same images and the same noise, a labelled strip for each model."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from shoal.errors import RunError
from shoal.model import Model
from shoal.objectives import Generates, Reconstructs
from shoal.pixels import to_uint8
from shoal.render import GAP, Picture, grid, sample_columns

SMALL = 48
"""Up to so many pixels wide, images stand in lines of 16; wider ones of 8."""

SAMPLE_LINES = 4
FONT_SIZE = 12
MARGIN = 4
NARROWEST = 240
"""Pixels that a label has at least, however few images stand below it."""


def columns_of(shape: tuple[int, int, int]) -> int:
    """Return how many images of a shape stand in a line; as many are reconstructed."""
    return 16 if shape[2] <= SMALL else 8


def contact_sheet(models: Mapping[str, Model], originals: Tensor | None, seed: int = 0) -> Picture | None:
    """Draw originals above each model's reconstructions of them, then each model's samples from the same noise.

    Where no model can draw anything, there is no picture.

    Args:
        models: by the name to write above their strips.
        originals: uint8 [n, C, H, W], for one line; None: no reconstructions.
        seed: of the noise.

    Raises:
        RunError: models of different image shapes.
    """
    refuse_different_shapes(models)
    strips: list[tuple[str, Picture]] = []
    reconstructing = {name: model for name, model in models.items() if isinstance(model.objective, Reconstructs)}
    if originals is not None and reconstructing:
        strips.append(("originals", grid(originals, len(originals))))
        for name, model in reconstructing.items():
            again = to_uint8(model.reconstruct(originals), "unit")
            strips.append((f"{name}: reconstructions", grid(again, len(again))))
    generating = {name: model for name, model in models.items() if isinstance(model.objective, Generates)}
    # One number for all: the noise of 40 images is not the beginning of that of 64.
    columns = min(
        (sample_columns(model.objective, model.num_classes, columns_of(model.shape)) for model in generating.values()),
        default=0,
    )
    for name, model in generating.items():
        samples = to_uint8(model.sample(columns * SAMPLE_LINES, seed), "unit")
        strips.append((f"{name}: samples", grid(samples, columns)))
    if not strips:
        return None
    width = max(NARROWEST, *(picture.shape[1] for _, picture in strips))
    lines: list[Picture] = []
    for text, picture in strips:
        lines += [label(text, width, picture.shape[2]), _widened(picture, width)]
    return np.concatenate(lines)


def refuse_different_shapes(models: Mapping[str, Model]) -> None:
    """Refuse models that no one set of images fits.

    Raises:
        RunError: with two of them.
    """
    named = list(models.items())
    for name, model in named[1:]:
        first, other = named[0][1].shape, model.shape
        if first != other:
            mine, theirs = ("x".join(map(str, shape)) for shape in (first, other))
            raise RunError(
                f"{named[0][0]} makes images of {mine} and {name} of {theirs}; pictures stand side by side only where"
                " the shapes are the same. Compare runs of one shape"
            )


def label(text: str, width: int, channels: int) -> Picture:
    """Write a line of text, black on white, uint8 [H, width, channels]; what is too long loses its middle."""
    font = ImageFont.load_default(FONT_SIZE)
    shown, kept = text, len(text)
    while kept > 1 and font.getlength(shown) > width - 2 * MARGIN:
        kept -= 1
        shown = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    line = Image.new("L", (width, FONT_SIZE + 2 * MARGIN), 255)
    ImageDraw.Draw(line).text((MARGIN, MARGIN), shown, fill=0, font=font)
    return np.repeat(np.asarray(line)[..., None], channels, axis=2)


def _widened(picture: Picture, width: int) -> Picture:
    height, own, channels = picture.shape
    canvas = np.full((height + GAP, width, channels), 255, np.uint8)
    canvas[:height, :own] = picture
    return canvas
