"""The measures of several runs beside each other, where they may be compared."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite
from pathlib import Path
from typing import Any

from shoal.checkpoint import STATE, saved
from shoal.errors import RunError
from shoal.quality.better import Better, better
from shoal.run import EVALUATION

BY_EXTRACTOR = ("fd", "kd", "is", "precision", "recall", "density", "coverage", "agreement")


@dataclass(frozen=True)
class Score:
    """One measure.

    Attributes:
        value: of it.
        n: images that it was taken on.
        low: where its interval begins.
        high: where that ends.
        floor: what real images score among themselves.
        ratio: the value over the floor, where that says something.
        of: the largest possible value, of a count.
    """

    value: float
    n: int | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    ratio: float | None = None
    of: float | None = None


@dataclass(frozen=True)
class Measures:
    """What eval.json says of a run.

    Attributes:
        path: the run's directory.
        split: of the data set that it was measured on.
        fingerprint: of that data set; None: not known.
        samples: the clock at which it was measured; None: not known.
        scores: by measure.
    """

    path: Path
    split: str
    fingerprint: str | None
    samples: int | None
    scores: Mapping[str, Score]


@dataclass(frozen=True)
class Row:
    """A measure beside itself: a score per run, None where a run has none; ``best`` are the places of the best ones."""

    name: str
    better: Better | None
    scores: tuple[Score | None, ...]
    best: tuple[int, ...]


def read_measures(run: Path) -> Measures | None:
    """Return what a run's eval.json says, or None where it has none. Older files say less.

    Raises:
        RunError: it is damaged.
    """
    file = run / EVALUATION
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text())
        details = found.get("details") or {}
        return Measures(
            path=run,
            split=str(found["split"]),
            fingerprint=found.get("fingerprint") or _trained_on(run),
            samples=found.get("samples"),
            scores={
                name: _score(value, details.get(name) or {}, found["num_samples"])
                for name, value in found["metrics"].items()
                if value is not None and isfinite(value)
            },
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{file} is damaged ({error!r}); make it anew: {_command(run)}") from None


def compare(all_measures: Sequence[Measures | None]) -> list[Row]:
    """Return every measure that some run has, a row each.

    Raises:
        RunError: two runs were measured on other splits, data sets or numbers of images, or by other extractors.
    """
    found = [measures for measures in all_measures if measures is not None]
    for one, two in combinations(found, 2):
        refuse_incomparable(one, two)
    names = dict.fromkeys(name for measures in found for name in measures.scores)
    return [
        _row(name, [measures.scores.get(name) if measures else None for measures in all_measures]) for name in names
    ]


def refuse_incomparable(one: Measures, two: Measures) -> None:
    """Refuse two runs whose scores say nothing of each other.

    Raises:
        RunError: with the command that measures them alike.
    """

    def refuse(what: str, mine: object, theirs: object, remedy: str) -> None:
        raise RunError(
            f"{one.path} and {two.path} were measured {what}: {mine} and {theirs}; scores compare only where these are"
            f" the same. Measure them alike: {remedy}"
        )

    if one.split != two.split:
        refuse("on different splits", one.split, two.split, _command(two.path, "--split", one.split))
    if one.fingerprint and two.fingerprint and one.fingerprint != two.fingerprint:
        mine, theirs = (f"fingerprint {digest[:12]}…" for digest in (one.fingerprint, two.fingerprint))
        refuse("on different data sets", mine, theirs, _command(two.path, "--data", "DIR") + " with that of the other")
    for family in BY_EXTRACTOR:
        mine_of, theirs_of = (set(_extractors(measures, family)) for measures in (one, two))
        if mine_of and theirs_of and not mine_of & theirs_of:
            extractor = min(mine_of)
            refuse(
                f"by different extractors ({family})",
                extractor,
                min(theirs_of),
                _command(two.path, *_number(one.scores[f"{family}/{extractor}"].n), *_by(f"{family}/{extractor}")),
            )
    for name in (name for name in one.scores if name in two.scores):
        mine_n, theirs_n = one.scores[name].n, two.scores[name].n
        if mine_n != theirs_n and mine_n is not None and theirs_n is not None:
            flags = _number(max(mine_n, theirs_n)) + _by(name)
            commands = " and ".join(_command(measures.path, *flags) for measures in (one, two))
            refuse(f"on different numbers of images ({name})", mine_n, theirs_n, commands)


def _row(name: str, scores: Sequence[Score | None]) -> Row:
    direction, values = better(name), [score.value for score in scores if score is not None]
    best: tuple[int, ...] = ()
    if direction and len(values) > 1:
        winner = min(values) if direction == "lower" else max(values)
        best = tuple(place for place, score in enumerate(scores) if score is not None and score.value == winner)
    return Row(name, direction, tuple(scores), best)


def _score(value: Any, detail: Mapping[str, Any], num_samples: Any) -> Score:
    known = {key: float(detail[key]) for key in ("low", "high", "floor", "ratio", "of") if detail.get(key) is not None}
    return Score(float(value), n=int(detail.get("n") or num_samples), **known)


def _extractors(measures: Measures, family: str) -> Iterator[str]:
    for name in measures.scores:
        own, _, extractor = name.partition("/")
        if own == family:
            yield extractor


def _trained_on(run: Path) -> str | None:
    """Return the fingerprint of a run's own data set: older files do not name the one that was measured on."""
    for folder in saved(run / "checkpoints"):
        try:
            fingerprint = json.loads((folder / STATE).read_text())["stream"]["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return str(fingerprint)
    return None


def _number(n: int | None) -> list[str]:
    return [] if n is None else ["--num", str(n)]


def _by(name: str) -> list[str]:
    """Return the flags that have a measure taken by its own extractor."""
    family, _, extractor = name.partition("/")
    if family == "fid" or (family in BY_EXTRACTOR and extractor.startswith("inception:")):
        return ["--inception-weights", "FILE"]
    return ["--extractor", extractor] if family in BY_EXTRACTOR else []


def _command(run: Path, *flags: str) -> str:
    return f"`{shlex.join(['shoal', 'eval', str(run), *flags])}`"
