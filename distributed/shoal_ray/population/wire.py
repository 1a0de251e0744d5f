"""A member's end of the wire to the switchboard."""

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ray

from shoal_ray.population.orders import Order

if TYPE_CHECKING:
    from shoal.world import World  # imports torch

SWITCHBOARD = "shoal-switchboard"
"""The actor's name, in the namespace that the driver connected with."""


def switchboard(namespace: str) -> Any:
    """Return the search's switchboard."""
    return ray.get_actor(SWITCHBOARD, namespace=namespace)


class Wire:
    """What the workers of one member say and hear; every rank holds one.

    Every rank asks for its orders itself: while a member waits for others, no collective is pending and could time out.

    Args:
        namespace: of the search's actors.
        member: its number.
        incarnation: of the member; an older one is told to leave.
        world: the workers that started together.
    """

    def __init__(self, namespace: str, member: int, incarnation: str, world: "World") -> None:
        self.board = switchboard(namespace)
        self._me = member, incarnation
        self._first = world.first
        self._group = world.first_says(lambda: secrets.token_hex(4))
        self._turn = 0

    def should_stop(self) -> bool:
        """Tell whether the search was asked to stop."""
        return bool(ray.get(self.board.is_set.remote()))

    def next(self, *, samples: int, seq: int) -> Order:
        """Wait for the next order, the same on every rank."""
        self._turn += 1
        order: Order = ray.get(self.board.next.remote(*self._me, self._group, self._turn, samples=samples, seq=seq))
        return order

    def trained(self, row: Mapping[str, Any], state: Any) -> tuple[bool, int | None]:
        """Report a generation; return whether it was heard, and its number if it is the best so far.

        The first rank calls this.
        """
        # In a list, since Ray would fetch what is passed as it is.
        told: tuple[bool, int | None] = ray.get(
            self.board.trained.remote(*self._me, row, [] if state is None else [state])
        )
        return told

    def loaded(self, facts: Mapping[str, Any]) -> None:
        """Report which state was taken. The first rank's word counts."""
        if self._first:
            ray.get(self.board.loaded.remote(*self._me, facts))

    def progress(self, **facts: Any) -> None:
        """Say how far it is, without waiting for an answer."""
        if self._first:
            self.board.progress.remote(*self._me, facts)
