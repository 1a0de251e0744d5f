"""Train an extractor on a data set: to tell its classes apart or, without labels, which way up an image is."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from shoal.data import DataSet, Stream
from shoal.errors import DataError
from shoal.quality.cnn import FeatureNet, build_net, repeatable
from shoal.quality.extractor import NUM_ROTATIONS, Extractor, describe, num_outputs, random_extractor
from shoal.quality.images import Block, Sample, Workshare
from shoal.world import World

BATCH = 128
NUM_IMAGES = 240_000
"""Images seen, so that it takes as long for any number of them: four times each of Fashion-MNIST's."""
MOST_EPOCHS = 50
"""How often a small data set is seen at most."""
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
WARM_UP = 0.2

Trained = Callable[[int, int], None]
"""Told how many images were seen, and of how many."""


def train_extractor(
    data: DataSet,
    kind: str | None = None,
    seed: int = 0,
    *,
    split: str = "train",
    device: torch.device | None = None,
    progress: Trained = lambda done, total: None,
) -> Extractor:
    """Train an extractor; the same seed gives the same weights on the same machine with as many threads.

    ``classifier`` (default where there are labels) learns the classes, ``rotation`` which of four ways an image was
    turned (Gidaris et al. 2018, arXiv:1803.07728), ``random`` nothing.

    Raises:
        DataError: no such split, a classifier without labels, or of a single class.
    """
    kind = kind or ("classifier" if data.num_classes else "rotation")
    if kind == "random":
        return random_extractor(data.shape, seed)
    if kind == "classifier":
        _refuse_unclassified(data, split)
    world = World.local(device)
    net = build_net(data.shape, num_outputs(kind, data.num_classes), seed).to(world.device)
    rows = data.num_rows(split)
    batch = min(BATCH, rows)
    num_images = min(NUM_IMAGES, MOST_EPOCHS * rows) // batch * batch
    with repeatable(), Stream(data, split=split, batch=batch, seed=seed, rows=slice(0, batch)) as stream:
        _fit(net, kind, stream, num_images, batch, progress)
    held_out = next((name for name in ("test", "val") if name in data.splits), split)
    return describe(
        net,
        kind=kind,
        seed=seed,
        shape=data.shape,
        num_classes=data.num_classes if kind == "classifier" else 0,
        fingerprint=data.fingerprint,
        data=str(data.location),
        num_images=num_images,
        accuracy=_accuracy(net, kind, Sample.of(data, held_out), world),
        accuracy_split=held_out,
    )


def _fit(net: FeatureNet, kind: str, stream: Stream, num_images: int, batch: int, progress: Trained) -> None:
    """Minimise the cross-entropy; the learning rate rises and falls once (Smith & Topin 2018, arXiv:1708.07120)."""
    device = next(net.parameters()).device
    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=num_images // batch + 1, pct_start=WARM_UP, anneal_strategy="linear"
    )
    net.train()
    for done in range(0, num_images, batch):
        raw = next(stream)
        images, classes = _task(kind, raw.images.to(device), raw.labels)
        logits = net(images)[1]
        loss = cross_entropy(logits, classes, ignore_index=-1, reduction="sum") / (classes >= 0).sum().clamp(min=1)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress(done + batch, num_images)
    net.eval()


def _task(kind: str, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return images and what to say of them, int64 [n] with -1 for nothing."""
    if kind == "classifier":
        assert labels is not None
        return images, labels.to(images.device)
    # Each image one way up: the order is another one in every epoch, and so is the way up.
    num, _, height, width = images.shape
    turns = torch.arange(num, device=images.device) % NUM_ROTATIONS
    side = min(height, width)
    square = images[:, :, (height - side) // 2 :, (width - side) // 2 :][:, :, :side, :side]
    turned = torch.stack([torch.rot90(square, turn, (2, 3)) for turn in range(NUM_ROTATIONS)])
    own = turned[turns, torch.arange(num, device=images.device)]
    return own if height == width else interpolate(own, (height, width)), turns


def _accuracy(net: nn.Module, kind: str, sample: Sample, world: World) -> float | None:
    """Return the share of right answers among the images of a sample; None where there is nothing to answer."""
    labels = sample.labels()

    def work(block: Block) -> dict[str, Tensor]:
        own = None if labels is None else labels[block.rows]
        images, classes = _task(kind, sample.pixels(block, world.device), own)
        with torch.no_grad():
            return {"right": net(images)[1].argmax(1) == classes, "asked": classes >= 0}

    found = Workshare(world, sample.data.shape).tables("accuracy", len(sample), work)
    asked = found["asked"].sum().item()
    return found["right"].sum().item() / asked if asked else None


def _refuse_unclassified(data: DataSet, split: str) -> None:
    """Refuse a data set whose classes cannot be learned.

    Raises:
        DataError: no labels, or one class.
    """
    labels = data.labels(split)
    if labels is None:
        raise DataError(f"{data.location} has no labels, which a classifier learns; use --kind rotation")
    if len(set(labels[labels >= 0].tolist())) < 2:
        raise DataError(f"split '{split}' of {data.location} has fewer than two classes; use --kind rotation")
