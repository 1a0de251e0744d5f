"""A trained model's tensors, made into those of the same model with another size of the latent."""

from collections.abc import Mapping

from torch import Tensor

from shoal.config import RunConfig
from shoal.errors import ConfigError
from shoal.nets.family import ImageShape
from shoal.transplant.carry import carry
from shoal.transplant.donor import Donor
from shoal.transplant.growth import GROWTH, additions
from shoal.transplant.layout import check_tensors, read_layout
from shoal.transplant.rules import SHRINK, padding


def check_change(old: RunConfig, new: RunConfig, shape: ImageShape, num_classes: int) -> None:
    """Check that a model of one configuration can become one of another.

    Raises:
        ConfigError: the networks differ otherwise than in the size of the latent, or in what is kept beside them.
    """
    before, after = old.ema.half_life_samples, new.ema.half_life_samples
    if (before > 0) != (after > 0):
        raise ConfigError(
            f"ema.half_life_samples {before} -> {after}: an average cannot begin or end while a model trains; leave it"
            " at 0, or above 0 from the beginning"
        )
    if old.optim.name != new.optim.name and "sgd" in (old.optim.name, new.optim.name):
        raise ConfigError(
            f"optim.name {old.optim.name} -> {new.optim.name}: the moments of one are not those of the other; only"
            " adam and adamw can take each other's place while a model trains"
        )
    if old.nets != new.nets or old.objective != new.objective:
        read_layout(old, new, shape, num_classes)


def transplant(
    tensors: Mapping[str, Tensor],
    old: RunConfig,
    new: RunConfig,
    shape: ImageShape,
    num_classes: int,
    images: Tensor,
    key: str,
) -> dict[str, Tensor]:
    """Change the size of a trained model's latent, and keep what it learned.

    Growth changes nothing that the model says: its new dimensions are zero where they are read, or where they are
    written, and learn from the first step on. A WAE's discrepancy from its prior, which is of more dimensions then, and
    the commitment of a VQ-VAE, a mean over dimensions of the same sum, are the two terms of a loss that change.

    Shrinking projects. A linear code keeps the subspace of which the first layer that reads it loses the least; a
    posterior its dimensions of largest KL, any other code those of largest variance x column norm, and what is lost
    leaves its mean in the next bias. Under a spectral norm what the encoder's last layer loses makes the rest of it
    larger, which a linear code can undo where it is read, and the others cannot.

    The averaged weights, where there are any, decide what is kept. Networks, averages and the optimizers' moments then
    go through one and the same map; Adam's second moments as if gradients of different dimensions were independent.

    Args:
        tensors: of a run with the configuration ``old``, on the CPU, named as ``State.tensors`` names them.
        old: the configuration that they were trained with.
        new: one that differs in ``nets.latent``, and perhaps in what no tensor depends on.
        shape: of the images.
        num_classes: of the data set.
        images: uint8 [n, C, H, W] of the training split; a few hundred, and more than the latent has dimensions. Not
            all changes look at them.
        key: of the few random numbers; what is returned depends on nothing but the arguments.

    Returns:
        All tensors as ``State.load_tensors`` of a run with the configuration ``new`` takes them; copies.

    Raises:
        ConfigError: the networks differ otherwise than in the size of the latent.
        RunError: the model has diverged, so that its latent cannot be measured.
    """
    layout = read_layout(old, new, shape, num_classes)
    check_tensors(tensors, layout)
    if layout.before == layout.after:
        return {name: tensor.clone() for name, tensor in tensors.items()}
    donor = Donor(tensors, old, shape, num_classes, images, layout)
    kind = layout.kind
    if layout.after > layout.before:
        return carry(tensors, layout, padding(layout.before, layout.after), additions(donor, GROWTH[kind], key))
    return carry(tensors, layout, SHRINK[kind](donor, layout.after), {})
