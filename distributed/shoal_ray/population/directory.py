"""The directory of a search, and what in it belongs to whom.

``runs/NAME/``: search.yaml, environment.json, plugin.py (if any), lineage.jsonl and population.jsonl (the journals),
members/NNN/ (each a run directory), best/ (a run directory of the best so far), tensorboard/ (of the whole population),
lineage.html, and ray/, Ray's own notes.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.config import RunConfig, with_overrides
from shoal.data import DataSet
from shoal.errors import RunError
from shoal.files import atomic_directory, write_text
from shoal.objectives import load_plugin
from shoal.run import ENVIRONMENT, PLUGIN, Run, environment, locked
from shoal.run_files import Place, located
from shoal.storage.location import Location
from shoal_ray.population.search_config import SearchConfig, read_search

SEARCH = "search.yaml"
LINEAGE, POPULATION = "lineage.jsonl", "population.jsonl"
KEPT_GENERATIONS = 3
"""Checkpoints of each member: a donor's is what a taker falls back to when the donor is gone."""


@dataclass(frozen=True)
class SearchDirectory:
    """A search's directory, its configuration and its data set."""

    path: Path
    search: SearchConfig
    data: Location

    @classmethod
    def create(
        cls, path: Path, search: SearchConfig, data: Place, facts: Mapping[str, Any], plugin: Path | None = None
    ) -> "SearchDirectory":
        """Make a new one, whole or not at all.

        Raises:
            RunError: something is already there.
        """
        refuse_existing(path)
        data = located(data)
        with atomic_directory(path) as folder:
            (folder / SEARCH).write_text(search.to_yaml())
            (folder / ENVIRONMENT).write_text(json.dumps(environment(data, facts), indent=1))
            if plugin is not None:
                shutil.copyfile(plugin, folder / PLUGIN)
        return cls(path.resolve(), search, data)

    @classmethod
    def open(cls, path: Path) -> "SearchDirectory":
        """Open an existing one, loading its plug-in.

        Raises:
            RunError: there is no search.
        """
        if not (path / SEARCH).is_file():
            raise RunError(
                f"{path} is not the directory of a search (no {SEARCH} in it); give the --out of `shoal tune`"
            )
        if (path / PLUGIN).is_file():
            load_plugin(path / PLUGIN)
        try:
            data = Location.parse(Run.facts_of(path)["data"])
        except (KeyError, TypeError):
            raise RunError(
                f"{path / ENVIRONMENT} does not say where the data is; start anew with another --out"
            ) from None
        return cls(path.resolve(), read_search(path / SEARCH), data)

    def note(self, facts: Mapping[str, Any]) -> None:
        """Write where and with what it goes on."""
        write_text(self.path / ENVIRONMENT, json.dumps(environment(self.data, facts), indent=1))

    @property
    def lineage(self) -> Path:
        """The journal of births, exploits and deaths."""
        return self.path / LINEAGE

    @property
    def population(self) -> Path:
        """The journal of what each generation of each member came to."""
        return self.path / POPULATION

    @property
    def best(self) -> Path:
        """The run directory of the best so far."""
        return self.path / "best"

    def member(self, number: int) -> Path:
        """Return a member's run directory."""
        return self.path / "members" / f"{number:03d}"

    def member_config(self, number: int, values: Mapping[str, Any], data: DataSet) -> RunConfig:
        """Return what a member trains with: same images, order and noise for all, its own first weights and values."""
        return member_config(self.search, number, values, data)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process from carrying on this search while the block lasts."""
        with locked(self.path):
            yield


def member_config(search: SearchConfig, number: int, values: Mapping[str, Any], data: DataSet) -> RunConfig:
    """Return a member's run configuration; fitness is measured on images that no member trains on.

    They are the data set's ``val`` or, where it has none, the last part of ``train`` by position in the manifest.
    """
    config = search.config_of(values)
    seen, held_out = splits(search, data, config.data.split)
    return with_overrides(
        config,
        [
            f"data.split='{seen}'",
            f"data.held_out='{held_out}'",
            f"init_seed={config.seed + number}",
            f"report.quality_every_samples={config.duration_samples}",
            f"report.quality_images={min(search.fitness.images, data.num_rows(held_out))}",
            "checkpoint.every_samples=0",
            f"checkpoint.keep={KEPT_GENERATIONS}",
        ],
    )


def splits(search: SearchConfig, data: DataSet, split: str = "train") -> tuple[str, str]:
    """Return what is trained on and what fitness is measured on."""
    if "val" in data.splits:
        return split, "val"
    cut = round(100 * (1 - search.fitness.held_out))
    return f"{split}[:{cut}%]", f"{split}[{cut}%:]"


def refuse_existing(path: Path) -> None:
    """Refuse to write a new search over something.

    Raises:
        RunError: ``path`` exists.
    """
    if (path / SEARCH).is_file():
        raise RunError(f"{path} already holds a search; go on with --resume, or give another --out")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"{path} exists and is not a search; give another --out")
