"""The space of a search: which keys of a run may change, how a population is first drawn, and how a member moves."""

from collections.abc import Iterator, Mapping
from random import Random
from typing import Any, Self

from shoal.errors import ConfigError
from shoal_ray.population.dimension import Dimension, Value
from shoal_ray.population.kinds import read_dimension


class Space(Mapping[str, Dimension]):
    """What a search may change: dotted keys of a run's configuration, and what each may become."""

    def __init__(self, dimensions: Mapping[str, Dimension]) -> None:
        self._dimensions = dict(dimensions)

    @classmethod
    def read(cls, values: object) -> Self:
        """Read the ``space`` of a search as YAML gives it.

        Raises:
            ConfigError: names every bad key.
        """
        if not isinstance(values, Mapping) or not values:
            raise ConfigError("space is empty; name a key to search, e.g. space: {nets.latent: {ladder: [8, 16, 32]}}")
        found, problems = {}, []
        for key, of_key in values.items():
            try:
                found[str(key)] = read_dimension(str(key), of_key)
            except ConfigError as error:
                problems.append(str(error))
        if problems:
            raise ConfigError("\n".join(problems))
        return cls(found)

    def __getitem__(self, key: str) -> Dimension:
        """Return what ``key`` may become."""
        return self._dimensions[key]

    def __iter__(self) -> Iterator[str]:
        """Yield the keys in the order of the file."""
        return iter(self._dimensions)

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._dimensions)

    def plain(self) -> dict[str, Any]:
        """Return what ``read`` takes."""
        return {key: dimension.plain() for key, dimension in self.items()}

    def sample(self, num: int, seed: int) -> list[dict[str, Value]]:
        """Draw the first values of ``num`` members by Latin hypercube.

        Each dimension is cut into ``num`` strata of equal probability and every stratum is used once, in an order of
        its own (McKay, Beckman & Conover 1979, Technometrics 21(2), section 2.3). The draws of a key depend on the seed
        and the key alone, so a search over fewer keys starts from the same values of those that it keeps.
        """
        columns = {key: _strata(num, Random(f"{seed}/{key}")) for key in self}
        return [{key: self[key].quantile(columns[key][member]) for key in self} for member in range(num)]

    def explore(self, values: Mapping[str, Value], rng: Random) -> tuple[dict[str, Value], dict[str, str]]:
        """Return values of the space near others, and by key what was done in words.

        The result depends on ``values`` and the state of ``rng``, not on the order of any mapping.
        """
        moved = {key: self[key].explore(values[key], rng) for key in sorted(self)}
        return {key: moved[key][0] for key in self}, {key: moved[key][1] for key in self}


def _strata(num: int, rng: Random) -> list[float]:
    """Return ``num`` numbers in [0, 1), one in each interval of 1 / num, shuffled."""
    order = list(range(num))
    rng.shuffle(order)
    # 32 bits: 53 could round up into the next stratum.
    return [(stratum + rng.getrandbits(32) / 2**32) / num for stratum in order]
