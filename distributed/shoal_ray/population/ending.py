"""When a search ends before its last generation: for all members at once."""

from collections.abc import Collection, Sequence

from shoal_ray.population.journal import Row
from shoal_ray.population.search_config import SearchConfig
from shoal_ray.population.standing import Standing

DIVERGED = "all members have diverged"


def why_over(search: SearchConfig, members: Collection[Standing], rows: Sequence[Row], hours: float) -> str | None:
    """Return why a search ends here, if it does.

    Args:
        search: whose rules count.
        members: where everyone stands.
        rows: of the population's journal.
        hours: since it began or went on.
    """
    stop = search.stop
    if all_diverged(search, members):
        return DIVERGED
    if stop.hours is not None and hours > stop.hours:
        return f"stop.hours={stop.hours:g} are over"
    if stop.plateau_generations is not None and plateau(search, members, rows) >= stop.plateau_generations:
        return f"no better best for {stop.plateau_generations} generations"
    return None


def all_diverged(search: SearchConfig, members: Collection[Standing]) -> bool:
    """Tell whether nobody has weights to give; where weights are not taken, whether nobody ever had any."""
    taking = search.algorithm == "pbt"
    newest = [standing.row for standing in members if not (taking and standing.dead)]
    return bool(newest) and all(row is not None and row["fitness"] is None for row in newest)


def plateau(search: SearchConfig, members: Collection[Standing], rows: Sequence[Row]) -> int:
    """Return how many generations ago the best was found, by the member that is least far."""
    scored = [(search.fitness.score(row["fitness"]), row["generation"]) for row in rows]
    best = max(((score, -generation) for score, generation in scored if score is not None), default=None)
    living = [standing.generation for standing in members if not standing.dead]
    return 0 if best is None or not living else min(living) + best[1]
