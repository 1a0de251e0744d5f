"""What the best of a search is worth: on the test split and, where images are compared, by another extractor."""

from shoal.data import DataSet
from shoal.errors import DataError
from shoal.model import load_model
from shoal.objectives import Generates
from shoal.quality.classifier import train_extractor
from shoal.quality.evaluate import Evaluation, evaluate
from shoal.quality.extractor import Extractor, refuse_other_data
from shoal.quality.images import Progress
from shoal.quality.store import default_extractor, keep, kept, read
from shoal_ray.population.directory import SearchDirectory, splits

OTHER_SEED = 1


def report(directory: SearchDirectory, progress: Progress) -> Evaluation:
    """Measure ``best/`` on the test split, which no choice of the search has seen.

    A search whose fitness is a distance in an extractor's features may have found out what that extractor overlooks:
    the report is by another one, trained for the purpose if there is none.
    """
    data = DataSet.open(directory.data)
    model = load_model(directory.best)
    split = "test" if "test" in data.splits else splits(directory.search, data)[1]
    extractor = None
    if isinstance(model.objective, Generates):
        chosen_by_images = directory.search.fitness.metric.partition("/")[0] in ("kd", "fd")
        extractor = other_extractor(data, make=chosen_by_images, progress=progress)
    return evaluate(model, data, split, extractor=extractor, progress=progress)


def other_extractor(data: DataSet, *, make: bool, progress: Progress) -> Extractor | None:
    """Return an extractor beside the data that is not the default one; None where there is none and none is made."""
    default = default_extractor(data)
    for path, facts in kept(data):
        try:
            refuse_other_data(facts, data)
        except DataError:
            continue
        if facts.id != default.id:
            return read(path, data)
    if not make:
        return None
    seed = (default.facts.seed or 0) + OTHER_SEED
    made = train_extractor(
        data, seed=seed, progress=lambda done, total: progress("training another extractor", done, total)
    )
    keep(made, data)
    return made
