"""Train pythae's VAE or VQ-VAE as its documentation tells a user to, with the settings of its own MNIST scripts.

Those are: Adam with 1e-3 and the benchmark networks; for the VAE mean squared error, for the VQ-VAE 256 codes with a
moving average. With ``--preset`` it trains the networks of a Shoal preset instead: only losses and loops differ then.
"""

import math
from pathlib import Path
from typing import Any

import torch
from contender import METRICS, Ticks, arguments, in_parts, leave, load, num_parameters, test_images, training_pixels
from torch import Tensor

from shoal.config import read_config
from shoal.data import DataSet
from shoal.objectives import HasCodebook, Objective
from shoal.pixels import squash
from shoal.state import build_objective

LEARNING_RATE = 1e-3
OWN_CODES, OWN_CODE_SIZE = 256, 32


def own_model(kind: str, shape: tuple[int, int, int], latent: int, family: str, folder: Path) -> Any:
    """Build a model with pythae's networks for MNIST."""
    models, nets = load("pythae.models", folder), load("pythae.models.nn.benchmarks.mnist", folder)
    if kind == "vae":
        config = models.VAEConfig(input_dim=shape, latent_dim=latent, reconstruction_loss="mse")
        if family == "conv":
            return models.VAE(config, nets.Encoder_Conv_VAE_MNIST(config), nets.Decoder_Conv_AE_MNIST(config))
        return models.VAE(config, nets.Encoder_ResNet_VAE_MNIST(config), nets.Decoder_ResNet_AE_MNIST(config))
    # Of its networks only these make a map of codes; with the others a whole image would become one of 256.
    config = models.VQVAEConfig(
        input_dim=shape, latent_dim=OWN_CODE_SIZE, num_embeddings=OWN_CODES, use_ema=True, decay=0.99
    )
    return models.VQVAE(config, nets.Encoder_ResNet_VQVAE_MNIST(config), nets.Decoder_ResNet_VQVAE_MNIST(config))


def borrowed_model(kind: str, shape: tuple[int, int, int], objective: Objective, latent: int, folder: Path) -> Any:
    """Build a pythae model with the networks of a Shoal objective."""
    models, bases = load("pythae.models", folder), load("pythae.models.nn", folder)
    output = load("pythae.models.base.base_utils", folder).ModelOutput

    def encode(self: Any, x: Tensor) -> Any:
        if kind == "vq-vae":
            return output(embedding=self.net(x))
        mean, log_variance = self.net(x).chunk(2, dim=1)
        return output(embedding=mean, log_covariance=log_variance)

    def decode(self: Any, z: Tensor) -> Any:
        return output(reconstruction=squash(self.net(z), "unit"))

    def wrapped(base: Any, forward: Any, net: Any) -> Any:
        made = type(f"Shoal{base.__name__}", (base,), {"forward": forward, "__module__": __name__})()
        made.net = net
        return made

    decoder = objective.nets["decoder"]
    nets = (
        wrapped(bases.BaseEncoder, encode, objective.nets["encoder"]),
        wrapped(bases.BaseDecoder, decode, getattr(decoder, "net", decoder)),  # without Shoal's standard deviation
    )
    if kind == "vae":
        config = models.VAEConfig(input_dim=shape, latent_dim=latent, reconstruction_loss="mse")
        return models.VAE(config, *nets)
    assert isinstance(objective, HasCodebook)
    config = models.VQVAEConfig(
        input_dim=shape, latent_dim=latent, num_embeddings=objective.num_codes, use_ema=True, decay=0.99
    )
    return models.VQVAE(config, *nets)


def train(model: Any, pixels: Tensor, epochs: int, batch: int, seed: int, ticks: Ticks, out: Path, folder: Path) -> Any:
    """Run pythae's TrainingPipeline; return the model that it saved."""
    trainers = load("pythae.trainers", folder)
    callbacks = load("pythae.trainers.training_callbacks", folder)
    told = callbacks.TrainingCallback()
    told.on_train_step_end = lambda *_, **__: ticks.add(batch)
    config = trainers.BaseTrainerConfig(
        output_dir=str(out / "pythae"),
        num_epochs=epochs,
        learning_rate=LEARNING_RATE,
        per_device_train_batch_size=batch,
        seed=seed,
    )
    pipeline = load("pythae.pipelines", folder).TrainingPipeline(model=model, training_config=config)
    pipeline(train_data=pixels.float() / 255, callbacks=[told])
    saved = Path(pipeline.trainer.training_dir) / "final_model"
    return load("pythae.models", folder).AutoModel.load_from_folder(str(saved))


def main() -> None:
    """Train, and leave what is judged."""
    parser = arguments(__doc__)
    parser.add_argument("overrides", nargs="*", help="of the preset, k=v")
    parser.add_argument("--kind", choices=("vae", "vq-vae"), required=True)
    parser.add_argument("--preset", help="whose networks to train, instead of pythae's")
    parser.add_argument("--latent", type=int, default=16, help="of a VAE with pythae's networks")
    parser.add_argument("--family", choices=("conv", "resnet"), default="conv", help="of a VAE with pythae's networks")
    parser.add_argument("--batch", type=int, default=100)
    asked = parser.parse_args()
    folder, kind = asked.others_path, asked.kind
    torch.manual_seed(asked.seed)
    data = DataSet.open(asked.data)
    if asked.preset:
        config = read_config(asked.preset, asked.overrides)
        objective = build_objective(config, data.shape)
        model = borrowed_model(kind, data.shape, objective, config.nets.latent, folder)
    else:
        model = own_model(kind, data.shape, asked.latent, asked.family, folder)
    pixels, epochs = training_pixels(data, asked.samples, asked.seed)
    ticks = Ticks(asked.out / METRICS, asked.every_samples)
    model = train(model, pixels, epochs, asked.batch, asked.seed, ticks, asked.out, folder)
    if asked.judged:
        model.eval()
        make_outputs(model, kind, test_images(data, asked.judged), asked.out, folder)


def make_outputs(model: Any, kind: str, x: Tensor, out: Path, folder: Path) -> None:
    """Write the reconstructions of ``x`` and, of a VAE, its posterior and as many samples."""
    facts = {"parameters": num_parameters(model)}
    if kind == "vq-vae":
        indices = model(load("pythae.data.datasets", folder).DatasetOutput(data=x[:2])).quantized_indices
        bits = indices[0].numel() * math.log2(model.model_config.num_embeddings)
        leave(out, {**facts, "bits_per_image": f"{bits}"}, reconstructions=in_parts(model.reconstruct, x))
        return

    def posterior(part: Tensor) -> Tensor:
        found = model.encoder(part)
        return torch.stack([found.embedding, found.log_covariance], dim=1)

    mean, log_variance = in_parts(posterior, x).unbind(1)
    sampler = load("pythae.samplers", folder).NormalSampler(model)
    leave(
        out,
        facts,
        reconstructions=in_parts(lambda z: model.decoder(z).reconstruction, mean),
        mean=mean,
        log_variance=log_variance,
        samples=sampler.sample(num_samples=len(x), batch_size=500).cpu(),
    )


if __name__ == "__main__":
    main()
