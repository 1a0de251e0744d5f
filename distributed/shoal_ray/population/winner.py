"""The winning line's schedule as a plain run: ``shoal train winner.yaml`` does again what the population did."""

import json
from itertools import pairwise
from typing import Any

from shoal.config import RunConfig
from shoal.data import DataSet
from shoal.errors import RunError
from shoal.run import read_rows
from shoal_ray.population.directory import SearchDirectory
from shoal_ray.population.pedigree import Segment, line_to, segments


def winner(directory: SearchDirectory) -> RunConfig:
    """Return the run of the weights in ``best/``: their first values, and every later change at its sample.

    The clock is that of the weights: where members do not wait for each other, it is not that of the member that holds
    them in the end. Where they do, training it again on as many workers gives the same weights, bit for bit, unless a
    schedule of the learning rate was cut short by an early best.

    Raises:
        RunError: nothing was trained yet.
    """
    line, end = best_line(directory)
    first = line[0]
    config = directory.member_config(first.member, first.values, DataSet.open(directory.data))
    changes: dict[int, dict[str, Any]] = {}
    samples = 0
    for piece, following in pairwise(line):
        taken = piece.end_samples if following.parent_samples is None else following.parent_samples
        samples += taken - piece.start_samples
        changed = {key: value for key, value in following.values.items() if value != piece.values.get(key)}
        if changed:
            changes[samples] = {**changes.get(samples, {}), **changed}
    duration = samples + end - line[-1].start_samples
    return config.model_copy(update={"changes": changes, "duration_samples": duration})


def best_line(directory: SearchDirectory) -> tuple[list[Segment], int]:
    """Return the pieces of the line that led to ``best/``, from its birth, and the clock at its end.

    Raises:
        RunError: nothing was trained yet.
    """
    best = best_state(directory)
    if best is None:
        raise RunError(f"{directory.path} has trained nothing yet; go on with --resume")
    pieces = segments(read_rows(directory.lineage), read_rows(directory.population))
    line = [pieces[place] for place in line_to(pieces, *best)]
    if not line:
        raise RunError(
            f"the journals of {directory.path} do not tell of what is in {directory.best}; was a line of them removed?"
        )
    return line, best[1]


def best_state(directory: SearchDirectory) -> tuple[int, int] | None:
    """Return the member and the clock of what is in ``best/``; None where there is nothing yet."""
    origin = directory.best / "origin.json"
    if not origin.is_file():
        return None
    row = json.loads(origin.read_text())
    return row["member"], row["samples"]
