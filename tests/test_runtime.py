"""The allocator setting: opt-in, and a no-op where it doesn't apply."""

import subprocess
import sys

import pytest

from graphlr import runtime

# Page faults of the second hundred allocations of 8 MB, with and without tuning.
CODE = """
import resource, sys, numpy as np
if sys.argv[1] == "tuned":
    from graphlr.runtime import tune_cpu
    assert tune_cpu()
for _ in range(100): np.ones(1_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100): np.ones(1_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
    run = subprocess.run(
        [sys.executable, "-c", CODE, mode], capture_output=True, text=True, check=True
    )
    return int(run.stdout)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="mallopt is glibc's, on Linux"
)
def test_memory_is_kept_between_allocations():
    assert faults("tuned") < 0.1 * max(faults("plain"), 100)


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert runtime.tune_cpu() is False
