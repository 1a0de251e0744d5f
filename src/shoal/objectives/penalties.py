"""What keeps a discriminator smooth: penalties on the gradient of its raw score C with respect to images.

Gradients are per unit of the preset's pixel range and summed over channels and pixels, as in the papers. Each function
returns one value per image, without its weight, and can be differentiated once more, by the discriminator's weights.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def image_gradient(scores: Tensor, images: Tensor) -> Tensor:
    """Return the gradient of each image's score by that image, [n, C * H * W], with a graph of its own.

    Args:
        scores: [n], each computed from its own image alone.
        images: [n, C, H, W], which require a gradient.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.flatten(1)


def squared_gradient(scores: Tensor, images: Tensor) -> Tensor:
    """Return the zero-centred penalty ||grad C(x)||^2, [n].

    On real images R1, on generated ones R2 (Mescheder et al. 2018, arXiv:1801.04406, eq. 9 and 10); the paper's weight
    is gamma / 2.
    """
    return image_gradient(scores, images).square().sum(1)


def one_centred_gradient(
    discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, position: Tensor
) -> Tensor:
    """Return (||grad C(x)|| - 1)^2, [n], at a point x on the line between each real and generated image.

    The gradient penalty of WGAN-GP (Gulrajani et al. 2017, arXiv:1704.00028, eq. 3); the paper's weight is 10.

    Args:
        discriminator: from images to raw scores, [n].
        real: [n, C, H, W].
        fake: [n, C, H, W], whose graph is left alone.
        position: [n, 1] in [0, 1): 0 is the generated image, 1 the real one.
    """
    points = fake.detach().lerp(real.detach(), position[:, :, None, None]).requires_grad_()
    # Its derivative is 0, not nan, where the gradient vanishes.
    norm: Tensor = torch.linalg.vector_norm(image_gradient(discriminator(points), points), dim=1)
    return (norm - 1).square()


def due(index: int, every: int) -> bool:
    """Tell whether a lazy penalty comes at global batch ``index``.

    It then weighs ``every`` times as much, so that its strength stays (Karras et al. 2020, arXiv:1912.04958,
    appendix B). It shares the step of the loss, so Adam needs none of that paper's corrections.
    """
    return index % every == 0
