"""The whole population in TensorBoard: the best, quantiles, hyperparameters over time, exploits, the table."""

import shutil
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal_ray.display import Tail
from shoal_ray.population.directory import SearchDirectory
from shoal_ray.population.journal import Row, events
from shoal_ray.population.kinds import LogUniform
from shoal_ray.tensorboard import FOLDER

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # tensorboard's generated code warns on import, about itself
    from torch.utils.tensorboard import SummaryWriter

QUANTILES = {"worst": 0.0, "lower_quartile": 0.25, "median": 0.5, "upper_quartile": 0.75, "best": 1.0}


class PopulationBoard:
    """Writes ``SEARCH/tensorboard`` from the journals, anew whenever a search starts or goes on: no step comes twice.

    Args:
        directory: of the search.
    """

    def __init__(self, directory: SearchDirectory) -> None:
        self._search = directory.search
        folder = directory.path / FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder))
        self._writer.add_text("search", "```yaml\n" + directory.search.to_yaml() + "```", 0)
        self._lineage, self._population = Tail(directory.lineage), Tail(directory.population)
        self._events: list[Row] = []
        self._rows: dict[int, dict[int, Row]] = {}
        self._shown = 0

    def refresh(self) -> None:
        """Show what is new in the journals."""
        new = list(self._lineage.new_rows())
        self._events += new
        for row in self._population.new_rows():
            self._rows.setdefault(row["generation"], {})[row["member"]] = row
        for exploit in events(new, "exploit"):
            self._writer.add_text("exploits", tell(exploit, self._events), exploit["samples"])
        while self._complete(self._shown + 1):
            self._shown += 1
            self._show(self._shown, self._rows[self._shown].values())
        self._writer.flush()

    def close(self) -> None:
        """Show the last generation, complete or not, and finish."""
        self.refresh()
        if self._rows.get(self._shown + 1):
            self._show(self._shown + 1, self._rows[self._shown + 1].values())
        self._writer.close()

    def _complete(self, generation: int) -> bool:
        """Tell whether every member that lives has come to the end of a generation."""
        dead = {row["member"] for row in events(self._events, "death")}
        born = {row["member"] for row in events(self._events, "birth")}
        there = self._rows.get(generation, {})
        return bool(there) and born <= there.keys() | dead

    def _show(self, generation: int, rows: Iterable[Row]) -> None:
        ordered = by_fitness(rows, self._search.fitness.mode)
        samples, now = generation * self._search.generation_samples, time.time()
        fitness = [row["fitness"] for row in ordered if row["fitness"] is not None]
        for name, share in QUANTILES.items():
            if fitness:
                value = fitness[round((1 - share) * (len(fitness) - 1))]
                self._writer.add_scalar(f"fitness/{name}", value, samples, walltime=now)
        for key in self._search.space:
            values = [row["values"][key] for row in ordered]
            if all(isinstance(value, int | float) for value in values):
                self._writer.add_scalar(f"best/{key}", values[0], samples, walltime=now)
                self._distribution(key, np.array(values, float), samples, now)
        self._writer.add_scalar("population/members", len(ordered), samples, walltime=now)
        self._writer.add_text("population", table(ordered, list(self._search.space)), samples)

    def _distribution(self, key: str, values: NDArray[np.float64], samples: int, now: float) -> None:
        name = f"hyperparameters/{key}"
        if isinstance(self._search.space[key], LogUniform):
            name, values = f"hyperparameters/log10 {key}", np.log10(values)
        self._writer.add_histogram(name, values, samples, bins="auto", walltime=now)


def by_fitness(rows: Iterable[Row], mode: str) -> list[Row]:
    """Return rows, the best first, those without a fitness last."""
    sign = 1 if mode == "min" else -1
    return sorted(rows, key=lambda row: (row["fitness"] is None, sign * (row["fitness"] or 0)))


def table(rows: Sequence[Row], keys: Sequence[str]) -> str:
    """Return the population as a Markdown table."""
    lines = ["| member | fitness | " + " | ".join(keys) + " | samples/s |", "|---|---|" + "---|" * (len(keys) + 1)]
    for row in rows:
        fitness = "diverged" if row["fitness"] is None else f"{row['fitness']:.5g}"
        values = " | ".join(shown(row["values"][key]) for key in keys)
        lines.append(f"| {row['member']} | {fitness} | {values} | {row['samples_per_sec']:,.0f} |")
    return "\n".join(lines)


def tell(exploit: Row, all_events: Sequence[Row]) -> str:
    """Return an exploit as a sentence."""
    mutation = next((row for row in events(all_events, "mutation") if row["seq"] == exploit["seq"]), None)
    lead = "" if exploit["gap"] is None else f", {exploit['gap']:.1f} standard errors"
    before = "diverged" if exploit["before"] is None else f"{exploit['before']:.5g}"
    text = (
        f"member {exploit['member']} takes member {exploit['donor']}'s weights at {exploit['samples']:,}"
        f" ({before} -> {exploit['after']:.5g}{lead})"
    )
    return text + (f": {changes(mutation)}" if mutation and mutation["new"] else "")


def changes(mutation: Row) -> str:
    """Return what changed as ``optim.lr 0.001 -> 0.00125 (x 1.25), …``."""
    how: Mapping[str, Any] = mutation.get("how", {})
    return ", ".join(
        f"{key} {shown(mutation['old'].get(key))} -> {shown(value)}" + (f" ({how[key]})" if how.get(key) else "")
        for key, value in mutation["new"].items()
    )


def shown(value: Any) -> str:
    """Return a value as people write it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
