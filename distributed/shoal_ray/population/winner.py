"""The winning line's schedule as a plain run: ``shoal train winner.yaml`` does again what the population did."""

import json
from itertools import pairwise
from typing import Any

from shoal.config import RunConfig
from shoal.data import DataSet
from shoal.errors import RunError
from shoal.run import read_rows
from shoal_ray.population.directory import SearchDirectory
from shoal_ray.population.lineage_page import Segment, segments


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
    origin = directory.best / "origin.json"
    if not origin.is_file():
        raise RunError(f"{directory.path} has trained nothing yet; go on with --resume")
    best = json.loads(origin.read_text())
    pieces = segments(read_rows(directory.lineage), read_rows(directory.population))
    steps = (
        index
        for index, piece in enumerate(pieces)
        if piece.member == best["member"] and piece.start_samples < best["samples"] <= piece.end_samples
    )
    step = next(steps, None)
    if step is None:
        raise RunError(f"the journals of {directory.path} do not tell of {origin}; was a line of them removed?")
    line = [pieces[step]]
    while line[0].parent is not None:
        line.insert(0, pieces[line[0].parent])
    return line, int(best["samples"])
