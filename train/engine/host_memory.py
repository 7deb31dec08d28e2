"""On a CPU: memory that a step has freed is kept for the next one."""

from __future__ import annotations

import ctypes
import sys

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 1 << 30  # bytes; what is larger still goes back to the system at once
OLD_LARGEST = 32 << 20  # the most that a glibc before 2.35 takes


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed, as PyTorch's own allocator does on a GPU; returns whether it does.

    By default glibc asks the system for each large array and gives it back, and the system clears every page of it
    anew: a tenth of a step of preset tiny. Elsewhere than on Linux with glibc nothing is done.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has none
        return False
    kept = any(mallopt(M_MMAP_THRESHOLD, size) for size in (LARGEST, OLD_LARGEST))
    return kept and bool(mallopt(M_TRIM_THRESHOLD, 2 * LARGEST - 1))
