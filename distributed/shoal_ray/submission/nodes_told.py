"""What the nodes told the job that only checks, for the job that follows a moment later: it need not ask them again.

Every question starts a process on every node, which is most of what a submission costs a busy cluster.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

VARIABLE = "SHOAL_PREFLIGHT"
"""In the environment of a job that checks ``ask``; of one that was checked what :func:`line` says."""

ASK = "ask"
MARK = "shoal_preflight"


def tell(pythons: Sequence[str]) -> None:
    """Print the Python of every node, where this is a job that checks."""
    if os.environ.get(VARIABLE) == ASK:
        print(json.dumps({MARK: list(pythons)}), flush=True)


def heard(log: str) -> list[str]:
    """Return what a job that checks told; nothing if it told nothing."""
    for line in log.splitlines():
        if line.startswith(f'{{"{MARK}"'):
            return _strings(json.loads(line)[MARK])
    return []


def known() -> list[str]:
    """Return what was told before this job was submitted; nothing where nobody asked."""
    told = os.environ.get(VARIABLE, ASK)
    return [] if told == ASK else _strings(json.loads(told))


def with_variable(runtime_env: Mapping[str, Any], value: str) -> dict[str, Any]:
    """Return Ray's runtime environment of a job with this variable in it."""
    return {**runtime_env, "env_vars": {**runtime_env.get("env_vars", {}), VARIABLE: value}}


def _strings(found: object) -> list[str]:
    return [str(item) for item in found] if isinstance(found, list) else []
