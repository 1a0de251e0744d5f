"""``python -m shoal_ray.launch.again train … --out RUN``: begin a run, or go on with it where it is there already.

For schedulers that start the same command again after a power cut, a preemption, a limit of time: a batch system, a
Kubernetes job. A person who begins a run twice is better refused, as ``shoal train`` does.
"""

import os
import sys
from collections.abc import Sequence
from itertools import pairwise

from shoal.errors import ConfigError, ShoalError
from shoal.run_files import CONFIG
from shoal.storage.location import Location
from shoal_ray.cli.paths import located
from shoal_ray.population.directory import SEARCH

KEPT = ("--address", "--workers", "--cpus-per-worker", "--gpus-per-worker", "--max-failures", "--hang-timeout")
"""Where, and with how much, it goes on; the run itself knows what it learns from which data."""

COMMANDS = ("train", "tune")


def words_for(words: Sequence[str]) -> list[str]:
    """Return the words of ``shoal`` that do what ``words`` ask for, now.

    Raises:
        ConfigError: they are no command that trains, or do not say where the run is.
        StorageError: its place cannot be looked into.
    """
    if not words or words[0] not in COMMANDS:
        raise ConfigError(f"'{' '.join(words[:1])}' is no job; begin with train or tune")
    options = dict(_options(words))
    if "--out" not in options:
        raise ConfigError("no --out; name the run's directory or URI, so that it is found again")
    place = located(options["--out"])
    if not _exists(place):
        return list(words)
    kept = [word for flag in KEPT if flag in options for word in (flag, options[flag])]
    return [words[0], "--resume", "--out", options["--out"], *kept]


def _options(words: Sequence[str]) -> list[tuple[str, str]]:
    joined = [tuple(word.split("=", 1)) for word in words if word.startswith("--") and "=" in word]
    parted = [(word, after) for word, after in pairwise(words) if word.startswith("--")]
    return [(flag, value) for flag, value in [*parted, *joined] if "=" not in flag]


def _exists(place: Location) -> bool:
    return any((place / name).exists() for name in (CONFIG, SEARCH))


if __name__ == "__main__":
    try:
        command = words_for(sys.argv[1:])
    except ShoalError as error:
        from shoal_ray.cli import fail

        fail(str(error))
    os.execv(sys.executable, [sys.executable, "-m", "shoal_ray.cli", *command])  # so that signals reach it
