"""A live picture in a terminal that may go away at any time."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text


class Screen(ABC):
    """Shows something while a ``with`` block lasts: live in a terminal, plain lines elsewhere.

    It never ends what it shows: where nobody reads any more it falls silent.

    Args:
        console: where to show it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if self._live:
            with self._reader_may_leave():
                self._live.start()
            if self._console.quiet:
                self._live = None  # half started, it could not be stopped either
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            with self._reader_may_leave():
                self._live.stop()

    def note(self, text: str, style: str = "yellow") -> None:
        """Print a line that stays."""
        with self._reader_may_leave():
            self._console.print(Text(text, style=style), soft_wrap=True)

    @abstractmethod
    def _render(self) -> Group:
        """Draw what is known, without a look at any file: Live asks for it four times a second, in its own thread."""

    @contextmanager
    def _reader_may_leave(self) -> Iterator[None]:
        """Fall silent for good where printing fails: `head` has seen enough, a terminal was closed, a log is full."""
        try:
            yield
        except (OSError, ValueError, SystemExit):  # a closed file is a ValueError, a broken pipe what rich exits with
            self._console.quiet = True
