"""Named networks that turn images into features.

Distances in two feature spaces have nothing to do with each other, so every score carries the name of its extractor:
``<kind>:<hash of the weights>``.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import shoal
from shoal.data import DataSet
from shoal.errors import DataError
from shoal.nets.family import ImageShape
from shoal.quality.cnn import NUM_FEATURES, build_net, repeatable

KINDS = ("classifier", "rotation", "random")
"""What can be made for any data set, the better first. ``inception`` is read from a file: see ``inception.py``."""
NUM_ROTATIONS = 4


@dataclass(frozen=True, kw_only=True)
class ExtractorFacts:
    """What is known of an extractor; ``extractor.json`` holds it.

    Attributes:
        kind: ``classifier``, ``rotation``, ``random`` or ``inception``.
        hash: the first 8 hex digits of the sha256 of its weights.
        num_features: of an image.
        seed: of the weights and the order of the images; None: it was not made here.
        shape: of the images: channels, height, width; None: any.
        num_classes: of the data set; 0 where its labels are not used.
        fingerprint: of the data set; None: it knows no data set.
        data: where that was, for messages.
        num_images: seen in training, each as often as it came.
        accuracy: share of held-out images that it puts into the right class, or turns the right way up.
        accuracy_split: the split that was taken on.
        versions: of the libraries that made it.
    """

    kind: str
    hash: str
    num_features: int = NUM_FEATURES
    seed: int | None = None
    shape: ImageShape | None = None
    num_classes: int = 0
    fingerprint: str | None = None
    data: str | None = None
    num_images: int = 0
    accuracy: float | None = None
    accuracy_split: str | None = None
    versions: Mapping[str, str] | None = None

    @property
    def id(self) -> str:
        """The extractor's name in the names of measures."""
        return f"{self.kind}:{self.hash}"

    @property
    def directory_name(self) -> str:
        """The name of its directory."""
        return f"{self.kind}-{self.hash}"


@dataclass(frozen=True)
class Extractor:
    """A network with a name.

    Attributes:
        net: from uint8 images [n, C, H, W] to features, float32 [n, d], and logits [n, classes] or None.
        facts: about it.
    """

    net: nn.Module
    facts: ExtractorFacts

    @property
    def id(self) -> str:
        """``<kind>:<hash>``."""
        return self.facts.id

    @property
    def distance_name(self) -> str:
        """What a Frechet distance in its features is called: FID in those of the one network that FID is defined by."""
        return "fid" if self.facts.kind == "inception" else f"fd/{self.id}"

    def to(self, device: torch.device) -> "Extractor":
        """Move the network; return itself."""
        self.net.to(device)
        return self

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features, float32 [n, d], and logits [n, classes] if it tells classes apart, of uint8 [n, C, H, W]."""
        with repeatable():
            features, logits = self.net(pixels)
        return features, logits if self.facts.kind in ("classifier", "inception") else None


def num_outputs(kind: str, num_classes: int) -> int:
    """Return the width of the head of an extractor of this kind."""
    return {"classifier": num_classes, "rotation": NUM_ROTATIONS, "random": 0}[kind]


def describe(net: nn.Module, **facts: Any) -> Extractor:
    """Return a network as an extractor, named by its weights."""
    versions = {"shoal": shoal.__version__, "torch": torch.__version__}
    return Extractor(net, ExtractorFacts(hash=digest(net.state_dict()), versions=versions, **facts))


def random_extractor(shape: ImageShape, seed: int = 0) -> Extractor:
    """Return an untrained network: a sanity floor, which needs no file and no data."""
    return describe(build_net(shape, 0, seed), kind="random", shape=shape, seed=seed)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the first 8 hex digits of the sha256 of tensors, their names, types and shapes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        found.update(values.numpy().tobytes())
    return found.hexdigest()[:8]


def refuse_other_data(facts: ExtractorFacts, data: DataSet) -> None:
    """Refuse an extractor that was made for other images.

    Raises:
        DataError: names both.
    """
    remedy = f"train one: shoal extractor train --data {data.location}"
    made, given = ("x".join(map(str, shape or ())) for shape in (facts.shape, data.shape))
    if facts.kind == "inception" and data.shape[0] not in (1, 3):
        raise DataError(f"Inception sees images of 1 or 3 channels, {data.location} holds {given}; {remedy}")
    if facts.shape not in (None, tuple(data.shape)):
        raise DataError(f"extractor {facts.id} was made for images of {made}, {data.location} holds {given}; {remedy}")
    if facts.fingerprint not in (None, data.fingerprint):
        raise DataError(
            f"extractor {facts.id} was made for the data set {facts.data} (fingerprint {str(facts.fingerprint)[:12]}…),"
            f" not for {data.location} ({data.fingerprint[:12]}…); {remedy}"
        )
