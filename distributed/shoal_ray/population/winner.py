"""The winning line's schedule as a plain run: ``shoal train winner.yaml`` does again what the population did."""

from itertools import pairwise
from typing import Any

from shoal.config import RunConfig, with_overrides
from shoal.data import DataSet
from shoal.errors import RunError
from shoal.run import read_rows
from shoal_ray.population.directory import SearchDirectory
from shoal_ray.population.lineage_page import segments, winning_line


def winner(directory: SearchDirectory) -> RunConfig:
    """Return the run of the weights that won: their first values, and every later change at its sample.

    The clock is that of the weights: where members do not wait for each other, it is not that of the member that holds
    them in the end. Where they do, training it again on as many workers gives the same weights, bit for bit.

    Raises:
        RunError: nothing was trained yet.
    """
    search = directory.search
    pieces = segments(read_rows(directory.lineage), read_rows(directory.population))
    line = [pieces[index] for index in winning_line(pieces, search.fitness.mode)]
    if not line:
        raise RunError(f"{directory.path} has trained nothing yet; go on with --resume")
    first = line[0]
    config = directory.member_config(first.member, first.values, DataSet.open(directory.data))
    changes: dict[int, dict[str, Any]] = {}
    samples = 0
    for piece, following in pairwise(line):
        end = piece.end_samples if following.parent_samples is None else following.parent_samples
        samples += end - piece.start_samples
        changed = {key: value for key, value in following.values.items() if value != piece.values.get(key)}
        if changed:
            changes[samples] = {**changes.get(samples, {}), **changed}
    return with_overrides(config, []).model_copy(update={"changes": changes})
