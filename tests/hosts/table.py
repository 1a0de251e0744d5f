"""The table of faults, from the figures that tests recorded: median and worst over the runs of each."""

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from statistics import median
from typing import Any

PAGE = """\
# Faults

What a run survives, and what it costs. On several hosts: network namespaces of one machine, each with its own address,
processes and `/tmp`, and on them a Ray cluster with the settings of `cluster.yaml` ([how](../tests/hosts/README.md)).
The run is a small autoencoder: {steps} steps of {batch} images, a checkpoint every {checkpoint:,} samples, 2 workers
unless it says otherwise, each on a host of its own. The fault comes at sample {injected:,}.

- *detected*: from the fault until the driver has noted a loss of workers; – where none was lost
- *training again*: from the fault until the first step on record of the new workers, the start of their processes and
  the loading of the checkpoint among it; where none were lost, the longest time without a step on record since then
- *redone*: samples whose steps were taken again
- *weights equal*: in the end they are those of a run to which nothing happened, bit for bit

Median of {times} runs, the worst in brackets, by `make faults` on {machine}.

| fault | detected after | training again after | samples redone | weights equal |
|---|---|---|---|---|
{rows}

Where the weights may differ (another number of workers sums in another order), the error on the test images is within
1 % of the undisturbed run's.
"""


def page(names: Mapping[str, str], record: Iterable[str], **facts: Any) -> str:
    """Return the page.

    Args:
        names: of the faults, by the key of their rows, in the order of the table.
        record: lines of JSON: ``key`` and the fields of `Figures`.
        facts: what the text says of the runs.
    """
    rows = [json.loads(line) for line in record]
    runs = {key: [row for row in rows if row["key"] == key] for key in names}
    lines = [line(name, runs[key]) for key, name in names.items() if runs[key]]
    times = {len(each) for each in runs.values() if each}
    return PAGE.format(rows="\n".join(lines), times=" to ".join(map(str, sorted(times))), machine=machine(), **facts)


def line(name: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a row of the table."""
    equal = sum(run["equal"] for run in runs)
    cells = [
        name,
        seconds([run["detected_sec"] for run in runs if run["detected_sec"] is not None]),
        seconds([run["again_sec"] for run in runs]),
        spread([run["redone"] for run in runs], "{:,.0f}"),
        "yes" if equal == len(runs) else f"{equal} of {len(runs)}",
    ]
    return f"| {' | '.join(cells)} |"


def seconds(values: Sequence[float]) -> str:
    return spread(values, "{:.1f}") + " s" if values else "–"


def spread(values: Sequence[float], form: str) -> str:
    """Return the median and, if it is another figure, the worst."""
    middle, worst = form.format(median(values)), form.format(max(values))
    return middle if middle == worst else f"{middle} ({worst})"


def machine() -> str:
    """Return what the figures were measured on."""
    versions = f"Python {platform.python_version()}, torch {version('torch')}, Ray {version('ray')}"
    return f"{os.cpu_count()} {platform.machine()} cores without a GPU, Linux {platform.release()}, {versions}"
