"""The one network whose Frechet distance may be called FID: Inception v3 with the weights of 2015-12-05."""

import hashlib
import io
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from shoal.errors import ConfigError, DataError
from shoal.quality.extractor import Extractor, ExtractorFacts

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FILE = "weights-inception-2015-12-05-6726825d.pth"
NUM_FEATURES = 2048


class Inception(nn.Module):
    """The network of torch-fidelity, which resizes images to 299x299 as the original did; grey is shown as colour."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return pooled features, float32 [n, 2048], and logits [n, 1008], of uint8 [n, 1 or 3, H, W]."""
        features, logits = self.net(pixels.expand(-1, 3, -1, -1))
        return features, logits


def inception_extractor(path: Path) -> Extractor:
    """Load the network from a file; nothing is ever downloaded.

    Raises:
        DataError: no such file, or another one.
        ConfigError: torch-fidelity, which has the network, is not installed.
    """
    if not path.is_file():
        raise DataError(
            f"--inception-weights {path} is not a file; give the path of {FILE}, which torch-fidelity offers"
        )
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise DataError(
            f"--inception-weights {path} has the sha256 {found[:8]}…, and only {SHA256[:8]}… ({FILE}, which"
            " torch-fidelity offers) may be called FID; give that file, or leave it out for `fd/<extractor>`"
        )
    try:
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError) as error:
        raise DataError(f"--inception-weights {path} holds no weights ({error}); give the path of {FILE}") from None
    facts = ExtractorFacts(kind="inception", hash=SHA256[:8], num_features=NUM_FEATURES)
    return Extractor(Inception(_build(weights)).eval(), facts)


def _build(weights: dict[str, Tensor]) -> nn.Module:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise ConfigError(
            "--inception-weights needs torch-fidelity, which is not installed; run pip install 'shoal[fid]'"
        ) from None
    # It wants a file of its own to read: these bytes are ours, written a moment ago, and read from memory.
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    buffer.seek(0)
    with torch.random.fork_rng(devices=[]):
        net: nn.Module = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=buffer
        )
    return net
