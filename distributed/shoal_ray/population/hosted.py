"""Whose placement groups a member's workers have, so that they are given back whoever dies."""

import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.util.placement_group import get_placement_group, placement_group, remove_placement_group


class Tenancy:
    """Makes the placement groups of a member's workers, and tells the switchboard of each before there is one.

    Ray keeps the placement group of an actor that was killed as long as its job lives: nobody else could use what it
    reserves. The member's next incarnation gives it back, whenever the last one died.
    """

    def __init__(self, board: Any, member: int, incarnation: str) -> None:
        self._board, self._me = board, (member, incarnation)

    def reserve(self, bundles: list[dict[str, float]], strategy: str) -> Any:
        """Make the next group."""
        member, incarnation = self._me
        name = f"shoal-{member}-{incarnation}-{secrets.token_hex(4)}"
        ray.get(self._board.lives_in.remote(member, incarnation, name))
        return placement_group(bundles, strategy=strategy, name=name)


def give_back(names: Sequence[str]) -> None:
    """Remove the placement groups that a dead member has left."""
    for name in names:
        with suppress(ValueError):  # there is none of this name, or none any more
            remove_placement_group(get_placement_group(name))
