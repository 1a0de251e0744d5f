"""The small convolutional network whose features tell images apart."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from shoal.nets.family import ImageShape

NUM_FEATURES = 128
LARGEST_MAP = 7
"""Height or width from which on no convolution is strided any more."""


class FeatureNet(nn.Module):
    """Strided 3x3 convolutions, a plain one, and a fully connected layer, whose activations are the features.

    No norm: an image's features are its own, however it came to be.

    Args:
        shape: of the images: channels, height, width.
        num_classes: of the head; 0: no head.
    """

    def __init__(self, shape: ImageShape, num_classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        layers: list[nn.Module] = []
        after = 32
        while min(height, width) > LARGEST_MAP:
            layers += [nn.Conv2d(channels, after, 3, stride=2, padding=1), nn.ReLU()]
            channels, after, height, width = after, min(2 * after, NUM_FEATURES), -(-height // 2), -(-width // 2)
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(channels * height * width, NUM_FEATURES), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # He et al. 2015: keeps a random net's scale
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.head = nn.Linear(NUM_FEATURES, num_classes) if num_classes else None
        self.to(memory_format=torch.channels_last)  # an eighth faster on a CPU

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features, float32 [n, 128], and logits [n, classes] if there is a head, of uint8 [n, C, H, W]."""
        x = pixels.to(torch.float32, memory_format=torch.channels_last) / 127.5 - 1
        features: Tensor = self.body(x)
        return features, None if self.head is None else self.head(features)


def build_net(shape: ImageShape, num_classes: int, seed: int) -> FeatureNet:
    """Build the network with the weights that a seed gives, on the CPU, in evaluation mode; no other draw is moved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FeatureNet(shape, num_classes).eval()


@contextmanager
def repeatable() -> Iterator[None]:
    """Let a GPU convolve the same way every time, and as exactly as a CPU; what was set before comes back."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = True, False, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = before
