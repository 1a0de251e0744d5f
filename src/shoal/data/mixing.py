"""How well a window of blocks mixes the classes of a data set whose images may lie sorted."""

import numpy as np

from shoal.data.dataset import DataSet

FEW = 0.5
"""Of the classes. Fewer in a window, and batches differ in what they are of for a long while."""


def mixing_caution(data: DataSet, split: str, window_blocks: int) -> str | None:
    """Return what to say of a split whose windows hold few of its classes, or None.

    Estimated from the classes of each block, which the manifest lists.
    """
    blocks = [block.classes for shard in data.manifest.shards for block in shard.blocks]
    first = np.cumsum([0] + [block.rows for shard in data.manifest.shards for block in shard.blocks])[:-1]
    span = data.span(split)
    inside = [
        classes for classes, start in zip(blocks, first, strict=True) if span.first <= start < span.first + span.rows
    ]
    if len(inside) <= window_blocks or any(classes is None for classes in inside):
        return None
    kinds = {kind for classes in inside for kind in classes or {}}
    # Each class is missing from a window of blocks drawn at random with this chance.
    share = {kind: sum(kind in (classes or {}) for classes in inside) / len(inside) for kind in kinds}
    met = sum(1 - (1 - part) ** window_blocks for part in share.values())
    if met >= FEW * len(kinds):
        return None
    return (
        f"the images of split '{split}' lie sorted by class: the data.window_blocks={window_blocks} blocks of a window"
        f" hold about {met:.0f} of {len(kinds)} classes; a larger one mixes more, an import in random order best"
    )
