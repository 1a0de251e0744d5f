"""A finished model: a run's newest checkpoint, with the averaged weights where an average was kept."""

from dataclasses import dataclass

import torch

from shoal.checkpoint import Checkpoint
from shoal.config import RunConfig, build_config
from shoal.data import DataSet
from shoal.errors import RunError
from shoal.noise import Noise
from shoal.objectives import Generates, Objective, Reconstructs
from shoal.pixels import to_float, to_unit
from shoal.render import inference
from shoal.run import Run
from shoal.run_files import Place
from shoal.state import State, build_objective
from shoal.world import best_device


@dataclass(frozen=True)
class Model:
    """What a run has learned, ready to use.

    Attributes:
        objective: with the weights to show.
        config: that made it.
        shape: of its images: channels, height, width.
        samples: images it has seen.
        device: where it computes.
        num_classes: of the data set that it was trained on; 0 without labels.
    """

    objective: Objective
    config: RunConfig
    shape: tuple[int, int, int]
    samples: int
    device: torch.device
    num_classes: int = 0

    def sample(self, num: int, seed: int = 0, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Return ``num`` generated images, float [num, C, H, W] in [0, 1], on the CPU.

        ``labels``, int64 [num], says of which classes, where the model knows any; without, it takes each in turn.

        Raises:
            RunError: the objective does not generate.
        """
        objective = self.objective
        if not isinstance(objective, Generates):
            raise RunError(f"objective '{self.config.objective.name}' generates no images; try `shoal reconstruct`")
        with inference(objective.nets):
            noise = Noise(seed, -1, num, slice(0, num), self.device)
            images = objective.sample(num, noise, None if labels is None else labels.to(self.device))
        return to_unit(images, self.config.data.range).cpu()

    def reconstruct(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return reconstructions, float [n, C, H, W] in [0, 1] on the CPU, of uint8 images of that shape.

        Raises:
            RunError: the objective does not reconstruct.
        """
        objective = self.objective
        if not isinstance(objective, Reconstructs):
            raise RunError(f"objective '{self.config.objective.name}' does not reconstruct images; try `shoal sample`")
        with inference(objective.nets):
            x = to_float(pixels.to(self.device), self.config.data.range)
            return to_unit(objective.decode(objective.encode(x)), self.config.data.range).cpu()

    def refuse_other_shape(self, data: DataSet) -> None:
        """Refuse images that the networks were not made for.

        Raises:
            RunError: with both shapes.
        """
        if tuple(data.shape) != tuple(self.shape):
            made, given = ("x".join(map(str, shape)) for shape in (self.shape, data.shape))
            raise RunError(
                f"the run was trained on images of {made}, {data.location} holds {given}; give another --data"
            )


def load_model(place: Place, device: torch.device | None = None, passed_over: list[str] | None = None) -> Model:
    """Load what a run directory holds, here or at a URI.

    Raises:
        RunError: no run, or no checkpoint yet.
    """
    run = Run.open(place)
    found = run.newest_checkpoint(passed_over)
    if found is None:
        raise RunError(f"{place} has no checkpoint yet; let it train until checkpoint.every_samples, or stop it")
    return restore(build_config(found.config), found, device or best_device())


def restore(config: RunConfig, found: Checkpoint, device: torch.device) -> Model:
    """Build the networks and fill them from a checkpoint."""
    objective = build_objective(config, found.shape, found.num_classes).to(device)
    state = State.fresh(objective, config)
    state.load_tensors(found.tensors())
    return Model(objective.using(state.ema), config, found.shape, found.samples, device, found.num_classes)
