"""Who may train now, where not all members fit at once: first come, first served."""


class Turns:
    """Places for so many members.

    Args:
        slots: members that may train at once.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._training: set[int] = set()
        self._waiting: list[int] = []

    def ask(self, member: int) -> bool:
        """Stand in line, unless a member does or has a place; tell whether it is new there."""
        new = member not in self._waiting and member not in self._training
        if new:
            self._waiting.append(member)
        return new

    def is_next(self, member: int) -> bool:
        """Tell whether a member has a place, or may take one."""
        return member in self._training or (not self._full and self._waiting[:1] == [member])

    def take(self, member: int) -> None:
        """Give a member a place: in its turn, or because its workers are there already."""
        self._training.add(member)

    def step_aside(self, member: int) -> None:
        """Leave the line."""
        self._waiting = [other for other in self._waiting if other != member]

    def give_back(self, member: int) -> None:
        """Leave one's place."""
        self._training.discard(member)

    @property
    def crowded(self) -> bool:
        """Whether somebody waits for a place and there is none: who has nothing to do should leave."""
        return bool(self._waiting) and self._full

    @property
    def _full(self) -> bool:
        return len(self._training) >= self._slots
