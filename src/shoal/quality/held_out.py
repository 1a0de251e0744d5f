"""Which images a run is measured on while it trains, and how many."""

from shoal.config import RunConfig
from shoal.data import DataSet
from shoal.errors import ConfigError

MEASURED_IMAGES = 2_000
"""Enough to see a curve fall, few enough that the training does not wait for it."""


def held_out_split(config: RunConfig, data: DataSet) -> str:
    """Return the split for pictures and measures: the one named, else ``val``, ``test``, or what is trained on."""
    return config.data.held_out or next((name for name in ("val", "test") if name in data.splits), config.data.split)


def num_measured(config: RunConfig, data: DataSet) -> int:
    """Return how many images of the held-out split a run is measured on.

    Raises:
        ConfigError: more were asked for than the split has.
    """
    split, asked = held_out_split(config, data), config.report.quality_images
    rows = data.num_rows(split)
    if asked is not None and asked > rows:
        raise ConfigError(
            f"report.quality_images={asked} is more than the {rows} images of split '{split}';"
            f" use report.quality_images <= {rows}"
        )
    return min(rows, asked or MEASURED_IMAGES)
