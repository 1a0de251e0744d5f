"""One number, and all that one needs to know to believe it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from shoal.quality.bootstrap import Interval, mean_intervals


@dataclass(frozen=True)
class Measure:
    """A measure of a model.

    Attributes:
        value: of the measure.
        n: images that it was taken on.
        low: where its 95 % interval begins, if it has one.
        high: where that ends.
        floor: what real images get in the place of the model's, if there are enough of them.
        ratio: how many times its floor a distance is.
        of: the largest possible value, of a count.
    """

    value: float
    n: int
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    ratio: float | None = None
    of: float | None = None

    @classmethod
    def within(cls, value: float, n: int, interval: Interval, floor: float | None = None) -> "Measure":
        """Return a measure with its interval, and with what real images get."""
        return cls(value, n, interval.low, interval.high, floor)

    def details(self) -> dict[str, float]:
        """Return all that is known beside the value, as ``eval.json`` holds it."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: value for name, value in known.items() if name != "value"}


def means(values: Mapping[str, Tensor]) -> dict[str, Measure]:
    """Return the mean over images, with its interval, of each table, float64 [n]; all have the same n."""
    if not values:
        return {}
    stacked = torch.stack(list(values.values()), dim=1)
    found = zip(values, stacked.mean(0).tolist(), mean_intervals(stacked), strict=True)
    return {name: Measure.within(value, len(stacked), interval) for name, value, interval in found}


def means_by_class(
    values: Mapping[str, Tensor], labels: Tensor | None, class_names: list[str] | None
) -> dict[str, dict[str, float]]:
    """Return n and the mean of each table, float64 [n], over the images of each class that occurs.

    ``labels`` is int64 [n] with -1 for none. The names lose their group: ``quality/mse`` becomes ``mse``.
    """
    found: dict[str, dict[str, float]] = {}
    if labels is None or class_names is None or not values:
        return found
    for number, class_name in enumerate(class_names):
        of_class = labels == number
        if of_class.any():
            found[class_name] = {"n": int(of_class.sum())}
            for name, table in values.items():
                found[class_name][name.rpartition("/")[2]] = table[of_class.to(table.device)].mean().item()
    return found
