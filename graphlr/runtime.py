"""Settings of the process, opt-in: an allocator that suits XLA on a CPU."""

from __future__ import annotations

import ctypes
import sys

# glibc's names for what `mallopt` sets, from <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8


def tune_cpu() -> bool:
    """Let glibc's allocator keep the memory that XLA asks for anew at each step.

    XLA's CPU backend allocates its temporary buffers at every step, and glibc returns
    them to the system each time: tens of thousands of page faults a step. Call this
    once, before the first computation. It holds for the whole process and memory is
    never returned to the system, so it is never done at import.

    Returns:
        Whether it was done; elsewhere than on Linux with glibc it is not.

    Example:
        >>> tune_cpu() in (True, False)
        True
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1))
    done = [mallopt(name, value) == 1 for name, value in settings]
    return all(done)
