"""The memory of a process that trains: the same sizes are taken and given back thousands of times a second."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT = 1 << 30
LARGEST = 1 << 25  # the most that glibc takes


@contextmanager
def steady_memory() -> Iterator[None]:
    """Freed memory stays in the process, so that a step does not wait for the system to clear pages anew, and the
    garbage collector no longer walks through what the imports left; a tenth of a small step each way."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, KEPT)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
