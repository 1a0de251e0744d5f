"""A first look at what a member will say of itself, before anything is started."""

from contextlib import suppress

from shoal.config import with_overrides
from shoal.data import DataSet
from shoal.errors import DivergenceError
from shoal.session import Session, Tick
from shoal.world import World
from shoal_ray.population.directory import member_config
from shoal_ray.population.search_config import SearchConfig, find_metric

FEW_IMAGES = 16


def refuse_unknown_metric(search: SearchConfig, data: DataSet) -> None:
    """Train one small batch here and see whether the fitness' metric is among what is said of it.

    Raises:
        ConfigError: it is not; names what there is.
    """
    values = search.space.sample(search.population, search.seed)[0]
    config = member_config(search, 0, values, data)
    few = min(FEW_IMAGES, config.batch)
    measured = min(FEW_IMAGES, config.report.quality_images or FEW_IMAGES)
    small = with_overrides(
        config,
        # What is said does not depend on the learning rate, and a member may diverge.
        [f"batch={few}", f"report.quality_images={measured}", "report.images_every_samples=0", "optim.lr=1e-9"],
    )
    ticks: list[Tick] = []
    with Session(small, data.location, World.local("cpu")) as session, suppress(DivergenceError):
        ticks = list(session.advance(few))
    if not ticks:
        return
    find_metric(search.fitness.metric, ticks[-1].scalars)
