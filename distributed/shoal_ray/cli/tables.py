"""Tables on the terminal and in files."""

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

WIDEST = 10_000


def natural_width(console: Console, table: Table) -> Measurement:
    """Return how wide a table is with every word in one piece, and with every cell in one line."""
    return console.measure(table, options=console.options.update_width(WIDEST))


def print_table(console: Console, table: Table) -> None:
    """Print a table; into a file or a pipe as wide as it is, so that no row is broken."""
    if not console.is_terminal:
        console.width = max(console.width, natural_width(console, table).maximum)
    console.print(table)
