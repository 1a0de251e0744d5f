"""Places for workers: placement groups, and what a cluster has for them now and later."""

import secrets
import time
from contextlib import suppress

import ray
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from shoal_ray import cluster
from shoal_ray.resources import Resources, fitting


def ready(group: PlacementGroup, within_sec: float) -> bool:
    """Wait for the places, but not for long; tell whether they are there."""
    try:
        return group.wait(within_sec)
    except ray.exceptions.RayError:  # the head is being started again
        time.sleep(within_sec)
        return False


def stands(group: PlacementGroup) -> bool:
    """Whether a placement group has all of its places, as far as is known."""
    try:
        return placement_group_table(group).get("state") in ("CREATED", None)
    except ray.exceptions.RayError:
        return True


def give_back(group: PlacementGroup) -> None:
    """Give places back: what runs there ends."""
    with suppress(ray.exceptions.RayError):
        remove_placement_group(group)


class Room:
    """For how many workers of a run there is room, or will be."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._wish: PlacementGroup | None = None
        self._wished = 0
        self._unheard: list[str] = []
        """Names of placement groups whose making nobody confirmed."""

    def ask(self, workers: int) -> PlacementGroup:
        """Ask for places for so many workers, on as few nodes as they fit on; they wait in Ray's queue for them.

        Raises:
            RayError: the head does not answer. If it heard the question all the same, the next one takes that back.
        """
        gpus = self._resources.gpus_per_worker or 0.0
        bundle = {"CPU": self._resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
        while self._unheard:
            with suppress(ValueError):  # it did not
                remove_placement_group(get_placement_group(self._unheard[-1]))
            self._unheard.pop()
        name = f"shoal-{secrets.token_hex(8)}"
        try:
            group: PlacementGroup = placement_group([bundle] * workers, strategy="PACK", name=name)
        except ray.exceptions.RayError:
            self._unheard.append(name)
            raise
        return group

    def free(self) -> int:
        """Return how many workers fit into what nobody uses."""
        return fitting(self._resources, cluster.free_nodes())

    def there(self) -> int:
        """Return how many would fit if nobody used anything."""
        return fitting(self._resources, [node["Resources"] for node in cluster.alive_nodes()])

    def possible(self) -> int:
        """Return how many would fit if all nodes were up that a cluster may have."""
        return fitting(self._resources, cluster.possible_nodes())

    def for_more(self, workers: int) -> int:
        """Return how many workers fit beside those that train; where the cluster can grow, make it.

        It grows for what waits, so as many places as are missing are asked for.
        """
        possible = self.possible()
        if self._wish is None and possible > self.there():
            self._wished = min(self._resources.workers, possible) - workers
            self._wish = self.ask(self._wished) if self._wished > 0 else None
        granted = self._wished if self._wish is not None and ready(self._wish, 0) else 0
        return self.free() + granted

    def forget(self) -> None:
        """Ask for no more."""
        if self._wish is not None:
            give_back(self._wish)
        self._wish = None
