"""The memory of a process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Minor faults a round, of 20 after 5 to warm up, that takes 20 arrays of 1 MB, writes to them and lets them all go.
_ROUNDS = """
import resource, sys
import torch
from cluster.process import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
one = torch.ones(1 << 18)
for number in range(25):
    if number == 5:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    taken = [one * one for _ in range(20)]
    del taken
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 20)
"""


@pytest.mark.slow
def test_memory_that_was_freed_is_taken_again_without_a_fault():
    faults: dict[str, int] = {}
    starts = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}  # where glibc begins before it adapts itself
    for mode in ("keep", "plain"):
        command = [sys.executable, "-c", _ROUNDS, mode]
        faults[mode] = int(subprocess.run(command, capture_output=True, text=True, check=True, env=starts).stdout)
    assert faults["keep"] < 256 < faults["plain"]  # the pages of one array
