"""A step's memory is kept for the next one."""

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, torch
from shoal.memory import keep_freed_memory

def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        torch.ones(12 << 20)  # 48 MiB: more than glibc ever keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults(20)
keep_freed_memory()
faults(3)
print(given_back, faults(20))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_large_buffers_are_not_faulted_in_anew_at_every_step() -> None:
    said = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    given_back, kept = map(int, said.stdout.split())
    assert kept < given_back / 2
