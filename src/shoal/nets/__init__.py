"""Networks. A family knows how to read an image into features and how to write one from a latent."""

from pydantic import SerializeAsAny

from shoal.nets.conv import ConvConfig
from shoal.nets.family import NetConfig
from shoal.nets.mlp import MlpConfig
from shoal.nets.resnet import ResnetConfig
from shoal.registry import choose

NETS: dict[str, type[NetConfig]] = {
    "conv": ConvConfig,
    "mlp": MlpConfig,
    "resnet": ResnetConfig,
}

AnyNetConfig = SerializeAsAny[NetConfig]


def parse_net(values: object) -> NetConfig:
    """Validate the ``nets`` section by the family that its ``name`` says."""
    return choose(NETS, values, at="nets")


__all__ = ["NETS", "AnyNetConfig", "ConvConfig", "MlpConfig", "NetConfig", "ResnetConfig", "parse_net"]
