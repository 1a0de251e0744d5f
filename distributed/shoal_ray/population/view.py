"""What the terminal shows of a search: a live table of members, or plain lines where nobody watches."""

import time
from collections.abc import Mapping

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from shoal_ray.display import Tail, clock
from shoal_ray.population.board import by_fitness, shown, tell
from shoal_ray.population.directory import SearchDirectory
from shoal_ray.population.journal import Row, events
from shoal_ray.population.standing import Standing
from shoal_ray.screen import Screen

EVENTS = 5


class SearchView(Screen):
    """Members, last events, speed and time left, from where everyone stands.

    It never ends a search: where nobody reads any more it falls silent.

    Args:
        directory: of the search.
        console: live where it is a terminal, plain lines elsewhere.
    """

    def __init__(self, directory: SearchDirectory, console: Console) -> None:
        self._directory, self._search = directory, directory.search
        self._tail = Tail(directory.lineage, skip_existing=True)
        self._events: list[Row] = []
        self._lines: list[str] = []
        self._standings: Mapping[int, Standing] = {}
        self._began = time.monotonic()
        self._start_samples: int | None = None
        self._told = 0
        self._started: set[int] = set()
        super().__init__(console)  # last, since Live draws at once

    def look(self, standings: Mapping[int, Standing]) -> None:
        """Show where everyone stands now."""
        self._standings = standings
        if self._start_samples is None:
            self._start_samples = self._samples()
        new = self._tail.new_rows()
        self._events += new
        for row in new:
            line = self._line(row)
            if line:
                self._lines = [*self._lines, line][-EVENTS:]
                if not self._live:
                    self.note(line, style="")
        generation = min((standing.generation for standing in self._living()), default=self._search.generations)
        if generation > self._told:
            self._told = generation
            if not self._live:
                self.note(self._summary(generation), style="")

    def _line(self, row: Row) -> str | None:
        match row["event"]:
            case "exploit":
                return None  # told with its mutation, which comes next
            case "mutation":
                exploits = reversed(events(self._events, "exploit"))
                exploit = next((old for old in exploits if old["seq"] == row["seq"]), None)
                return tell(exploit, self._events) if exploit else None
            case "loaded" if row["source"] != "memory":
                lost = "the donor's state is lost: its own weights stay" if row["source"] == "own" else "from disk"
                return f"member {row['member']}: {row['state']} {lost}"
            case "death" if row["reason"] != "finished":
                return f"member {row['member']} {row['reason']} at {row['samples']:,}"
            case "start" if row["member"] in self._started:
                return f"member {row['member']} is started again at {row['samples']:,}"
            case "start":
                self._started.add(row["member"])
                return None
            case _:
                return None

    def _summary(self, generation: int) -> str:
        best = self._best()
        found = "no fitness yet" if best is None else f"best {best[0]:.5g} (member {best[1]})"
        return (
            f"generation {generation} of {self._search.generations}: {found},"
            f" {len(events(self._events, 'exploit'))} exploits, {self._speed():,.0f} samples/s, ETA {self._eta()}"
        )

    def _render(self) -> Group:
        table = Table(title=f"{self._directory.path.name}: {self._search.fitness.metric}", title_style="bold")
        table.add_column("member", justify="right")
        table.add_column("fitness", justify="right")
        table.add_column("samples", justify="right")
        for key in self._search.space:
            table.add_column(key.rpartition(".")[2], justify="right")
        for title in ("donor", "samples/s"):
            table.add_column(title, justify="right")
        table.add_column("state")
        for number, standing in sorted(self._standings.items()):
            row = standing.row
            fitness = "" if row is None else "diverged" if row["fitness"] is None else f"{row['fitness']:.5g}"
            table.add_row(
                str(number),
                fitness,
                f"{standing.samples:,}",
                *(shown(standing.values[key]) for key in self._search.space),
                "" if standing.donor is None else str(standing.donor),
                f"{standing.live.get('samples_per_sec', 0):,.0f}",
                standing.dead or str(standing.live.get("state", "starting")),
            )
        generation = min((standing.generation for standing in self._living()), default=self._search.generations)
        return Group(table, *(Text(line, style="dim") for line in self._lines), Text(self._summary(generation)))

    def _living(self) -> list[Standing]:
        return [standing for standing in self._standings.values() if not standing.dead]

    def _best(self) -> tuple[float, int] | None:
        rows = (row for standing in self._standings.values() for row in standing.rows if row["fitness"] is not None)
        best = next(iter(by_fitness(rows, self._search.fitness.mode)), None)
        return None if best is None else (best["fitness"], best["member"])

    def _samples(self) -> int:
        return sum(standing.samples for standing in self._standings.values())

    def _speed(self) -> float:
        return (self._samples() - (self._start_samples or 0)) / max(1e-9, time.monotonic() - self._began)

    def _eta(self) -> str:
        left = sum(self._search.samples - standing.samples for standing in self._living())
        speed = self._speed()
        return clock(max(0, left) / speed) if speed > 0 else "?"
