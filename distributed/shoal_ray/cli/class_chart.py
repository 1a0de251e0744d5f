"""Classes side by side in the terminal: how many images each has, as a small bar chart.

``class_chart(title: str, names: Sequence[str], columns: Mapping[str, Sequence[int]]) -> rich.table.Table`` serves both
``shoal data info`` (``columns={"images": counts}``, one chart per split) and ``shoal train`` (rows and draws).
"""

from collections.abc import Mapping, Sequence

from rich.bar import Bar
from rich.table import Table
from rich.text import Text

from shoal.data.balance import ClassShare

BAR_WIDTH = 24
MOST, FEWEST = 12, 12
"""Of more classes than these, the largest and the smallest are shown."""


def class_chart(title: str, names: Sequence[str], columns: Mapping[str, Sequence[int]]) -> Table:
    """Return a table with a line for each class: its counts, and of the last column also the share and a bar.

    ``columns`` holds a count for each class under each heading. Of many classes, those with the most and the fewest are
    shown, and the others as one line.
    """
    *_, last = columns.values()
    total, largest = sum(last), max(last, default=0)
    table = Table(title=Text(title, style="table.title"), title_justify="left", box=None, padding=(0, 1))
    table.add_column("class")
    for heading in (*columns, "share"):
        table.add_column(heading, justify="right")
    table.add_column("")

    def line(name: str, numbers: Sequence[int], bar: Bar | str) -> None:
        counts = [sum(column[number] for number in numbers) for column in columns.values()]
        share = f"{100 * counts[-1] / total:.2f} %" if total else ""
        table.add_row(Text(name), *(f"{count:,}" for count in counts), share, bar)

    shown, hidden = list(range(len(names))), list[int]()
    if len(names) > MOST + FEWEST + 1:
        by_size = sorted(shown, key=lambda number: -last[number])  # stable: ties in the order of the classes
        shown, hidden = by_size[:MOST] + by_size[-FEWEST:], by_size[MOST:-FEWEST]
    for place, number in enumerate(shown):
        if hidden and place == MOST:
            line(f"… {len(hidden):,} others", hidden, "")
        line(names[number], [number], Bar(largest or 1, 0, last[number], width=BAR_WIDTH))
    return table


def balance_chart(split: str, balance: str, shares: Sequence[ClassShare]) -> Table:
    """Return the chart of what an epoch of a balanced split draws."""
    title = f"data.balance={balance}: draws per epoch of split '{split}'"
    columns = {"images": [share.rows for share in shares], "draws": [share.draws for share in shares]}
    return class_chart(title, [share.name for share in shares], columns)
