"""Cache of the memory of freed outputs on the CPU: the next outputs reuse it, so that the system clears no new pages.

An output in such memory is a tensor like any other, but its storage cannot be enlarged, like that of a tensor whose
`numpy()` was called.
"""

from __future__ import annotations

from exodus_core import ops
from exodus_core.errors import ArgumentError


def keep_memory(limit: int) -> int:
    """Sets the limit of the cache; memory beyond it is released at once.

    The environment variable EXODUS_KEEP_MEMORY, in bytes, sets it on import; the default is 512 MiB.
    With 0, torch allocates outputs. Before torch 2.11 it is always 0.

    Args:
        limit: bytes.

    Returns:
        The limit before, in bytes.

    Raises:
        ValueError: the limit is negative.
    """
    if limit < 0:
        raise ArgumentError("limit", "at least 0", limit)
    return ops.keep_memory(limit)


def kept_memory() -> int:
    """Bytes in the cache, which no output uses at the moment."""
    return ops.kept_memory()[0]
