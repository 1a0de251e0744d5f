"""A step's memory is kept for the next one."""

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, torch
from shoal.memory import keep_freed_memory
keep_freed_memory()
def step():
    for _ in range(8):
        torch.ones(4 << 20)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_large_buffers_are_not_faulted_in_anew_at_every_step() -> None:
    """Each of the 160 buffers has 16 MiB, which is 4,096 pages."""
    said = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert int(said.stdout) < 4096
