"""Caches freed memory for the next computation, so that the operating system need not clear its pages again.

A training step frees and allocates the same sizes every time. By default glibc returns what the computing thread frees
to the operating system several times in a step: a thread allocates from heaps of its own, of at most 64 MiB, and empty
heaps are unmapped.
"""

import ctypes
import logging

import exodus_core

logger = logging.getLogger(__name__)

# Parameters of mallopt, from <malloc.h>; their values are C ints.
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_ARENA_MAX = -8
_MOST = 2**31 - 1


def keep_memory(limit: int) -> None:
    """Cache up to `limit` bytes of kernels' outputs, and as many at the end of the heap, for the whole process.

    All threads started later share one heap. Allocations of an eighth of the limit and more stay out of it: a small one
    behind them would keep all of them. Without glibc only outputs are cached.
    """
    exodus_core.keep_memory(limit)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or limit == 0:
        return
    limit = min(limit, _MOST)
    for parameter, value in ((_ARENA_MAX, 1), (_TRIM_THRESHOLD, limit), (_MMAP_THRESHOLD, limit // 8)):
        if not mallopt(parameter, value):
            logger.warning("mallopt(%d, %d) failed: less freed memory is kept", parameter, value)
