"""Objectives, one file per family. To add one: a file here, a line in the registry, a preset. Or bring a plug-in."""

import importlib.util
import sys
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from pathlib import Path
from traceback import extract_tb

from pydantic import SerializeAsAny

from shoal.errors import ConfigError
from shoal.nets import NetConfig
from shoal.nets.family import ImageShape
from shoal.objectives.autoencoder import Autoencoder
from shoal.objectives.base import (
    Batch,
    Generates,
    HasCodebook,
    HasLikelihood,
    LatentAxis,
    LatentKind,
    Objective,
    ObjectiveConfig,
    Phase,
    Reconstructs,
    Scalars,
)
from shoal.objectives.denoising import DenoisingAutoencoder
from shoal.objectives.gan import Gan
from shoal.objectives.vae import Vae
from shoal.objectives.vq_vae import VqVae
from shoal.objectives.wae import Wae
from shoal.pixels import PixelRange
from shoal.registry import choose

OBJECTIVES: dict[str, type[Objective]] = {
    "autoencoder": Autoencoder,
    "denoising_autoencoder": DenoisingAutoencoder,
    "gan": Gan,
    "vae": Vae,
    "vq_vae": VqVae,
    "wae": Wae,
}

AnyObjectiveConfig = SerializeAsAny[ObjectiveConfig]


def register(objective: type[Objective]) -> None:
    """Add an objective under the name that its ``Config`` declares.

    Raises:
        ConfigError: it declares no name, or that of another objective.
    """
    config = getattr(objective, "Config", None)
    is_config = isinstance(config, type) and issubclass(config, ObjectiveConfig)
    name = objective.Config.model_fields["name"].default if is_config else None
    if not isinstance(name, str):
        raise ConfigError(
            f"objective {objective.__name__} of {objective.__module__} has no Config with a name; give it a class"
            " Config(ObjectiveConfig) with name: Literal['mine'] = 'mine'"
        )
    known = OBJECTIVES.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (objective.__module__, objective.__qualname__):
        raise ConfigError(f"objective name '{name}' is taken by {known.__module__}; give {objective.__name__} another")
    OBJECTIVES[name] = objective


def load_plugin(path: Path) -> None:
    """Register every objective that a Python file defines.

    Raises:
        ConfigError: no such file, one that fails, or no objective in it.
    """
    spec = importlib.util.spec_from_file_location("shoal_plugin", path) if path.suffix == ".py" else None
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"plug-in {path} is not a Python file; give --plugin a .py file that defines an Objective")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as dataclasses, pydantic and pickle expect of a module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise ConfigError(f"plug-in {path}: {type(error).__name__}: {error}{_line_in(spec, error)}; mend it") from error
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Objective) and value.__module__ == module.__name__
    ]
    if not found:
        raise ConfigError(f"plug-in {path} defines no objective; subclass shoal.objectives.Objective in it")
    for objective in found:
        register(objective)


def _line_in(spec: ModuleSpec, error: Exception) -> str:
    """Return ``" (line n)"`` where a plug-in's code failed; a syntax error says so itself."""
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == spec.origin]
    return f" (line {lines[-1]})" if lines else ""


@cache
def load_installed() -> None:
    """Register the objectives of installed packages (entry point group ``shoal.objectives``), once."""
    for entry in entry_points(group="shoal.objectives"):
        register(entry.load())


def parse_objective(values: object) -> ObjectiveConfig:
    """Validate the ``objective`` section by the class that its ``name`` says."""
    load_installed()
    return choose({name: objective.Config for name, objective in OBJECTIVES.items()}, values, at="objective")


def build(
    config: ObjectiveConfig, nets: NetConfig, shape: ImageShape, pixel_range: PixelRange, num_classes: int = 0
) -> Objective:
    """Build an objective and its networks on the CPU, or on whatever ``torch.device`` context is active."""
    return OBJECTIVES[config.name](config, nets, shape, pixel_range, num_classes)


__all__ = [
    "OBJECTIVES",
    "AnyObjectiveConfig",
    "Autoencoder",
    "Batch",
    "DenoisingAutoencoder",
    "Gan",
    "Generates",
    "HasCodebook",
    "HasLikelihood",
    "LatentAxis",
    "LatentKind",
    "Objective",
    "ObjectiveConfig",
    "Phase",
    "Reconstructs",
    "Scalars",
    "Vae",
    "VqVae",
    "Wae",
    "build",
    "load_plugin",
    "parse_objective",
    "register",
]
