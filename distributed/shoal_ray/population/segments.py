"""True hyperparameters in TensorBoard: a session for each stretch that a member trained with the same values."""

import time
import warnings
from collections.abc import Mapping
from typing import Any

from shoal.run import Run
from shoal_ray.population.search_config import SearchConfig
from shoal_ray.tensorboard import FOLDER

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # tensorboard's generated code warns on import, about itself
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

FITNESS = "population/fitness"


class SegmentWriter:
    """Writes a member's values and fitness: as curves over its clock, and as a session of the HParams page.

    Args:
        run: the member's run directory.
        search: what is searched.
        samples: the clock at which the member took these values, or goes on with them.
        values: of the searched keys.
    """

    def __init__(self, run: Run, search: SearchConfig, samples: int, values: Mapping[str, Any]) -> None:
        self._search = search
        self._values = dict(values)
        generation = samples // search.generation_samples + 1
        self._folder = run.path / FOLDER / f"segment-{generation:04d}"
        self._start = samples

    def write(self, samples: int, row: Mapping[str, Any]) -> None:
        """Show what a generation of this stretch came to."""
        fitness = self._search.fitness.natural(row["metrics"], self._search.priced(row["values"]))
        with SummaryWriter(str(self._folder), purge_step=samples) as writer:
            file = writer.file_writer
            assert file is not None
            if row["generation"] == self._start // self._search.generation_samples + 1:
                told = {
                    key: value if isinstance(value, bool | int | float | str) else str(value)
                    for key, value in self._values.items()
                }
                for summary in hparams(told, {FITNESS: fitness}):  # type: ignore[no-untyped-call]  # torch's own
                    file.add_summary(summary)
            now = time.time()
            writer.add_scalar(FITNESS, fitness, samples, walltime=now)
            for key, value in self._values.items():
                if isinstance(value, int | float):
                    writer.add_scalar(f"hyperparameters/{key}", value, samples, walltime=now)
