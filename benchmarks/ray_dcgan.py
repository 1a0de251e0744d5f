"""Train the GAN of Ray's example ``pbt_dcgan_mnist`` alone, without the population.

Networks, initial weights, loss, update and batch are imported from the installed example, its learning rate is the one
in the middle of those that its search starts from. Two things differ, both to its advantage. Pixels lie in [-1, 1]: the
example normalises with the mean and deviation of MNIST, where white is 2.9, and its generator ends in a tanh. And 28
pixels become 32 by a black border, which is cut off again, instead of by blurring. The Inception Score of each batch,
which only the search reads, is left out.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from contender import METRICS, Ticks, arguments, in_parts, leave, load, num_parameters, training_pixels
from torch import Tensor
from torch.nn.functional import pad

from shoal.data import DataSet

LEARNING_RATE = 2e-4
BORDER = 2


def batches(images: Tensor, batch: int) -> Iterator[Any]:
    """Yield batches of shuffled epochs without end, as the example's loader does."""
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=batch, shuffle=True)
    while True:
        yield from loader


def main() -> None:
    """Train and leave samples."""
    parser = arguments(__doc__)
    asked = parser.parse_args()
    example = load("ray.tune.examples.pbt_dcgan_mnist.common", asked.others_path)
    example.inception_score = lambda *_: (0.0, 0.0)
    torch.manual_seed(asked.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pixels, _ = training_pixels(DataSet.open(asked.data), asked.samples, asked.seed)
    images = pad(pixels.float() / 127.5 - 1, (BORDER,) * 4, value=-1.0)

    generator, discriminator = (net.to(device) for net in (example.Generator(), example.Discriminator()))
    for net in (generator, discriminator):
        net.apply(example.weights_init)
    of_generator, of_discriminator = (
        torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, betas=(example.beta1, 0.999))
        for net in (generator, discriminator)
    )
    ticks = Ticks(asked.out / METRICS, asked.every_samples)
    steps, part = asked.samples // example.batch_size, max(1, asked.every_samples // example.batch_size)
    endless = batches(images, example.batch_size)
    for start in range(0, steps, part):
        num = example.train_iterations_per_step = min(part, steps - start)
        example.train_func(
            discriminator,
            generator,
            of_generator,
            of_discriminator,
            torch.nn.BCELoss(),
            islice(endless, num),
            1,  # the iteration: it prints at every tenth
            device,
            None,
        )
        ticks.add(num * example.batch_size)

    if asked.judged:
        generator.eval()
        latents = torch.randn(asked.judged, example.nz, 1, 1, device=device)
        inside = slice(BORDER, -BORDER)
        samples = in_parts(lambda z: (generator(z)[:, :, inside, inside] + 1) / 2, latents)
        leave(asked.out, {"parameters": num_parameters(generator, discriminator)}, samples=samples)


if __name__ == "__main__":
    main()
