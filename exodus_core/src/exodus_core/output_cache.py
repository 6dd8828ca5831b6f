"""Memory that large outputs leave on the CPU is kept for the next ones, whose pages then need not be cleared again.

An output in such memory is a tensor as any other, but that its storage cannot be enlarged, as that of a tensor whose
`numpy()` was called.
"""

from __future__ import annotations

from exodus_core import ops
from exodus_core.errors import ArgumentError


def keep_memory(limit: int) -> int:
    """Sets how much memory of freed outputs is kept at most; what exceeds it is given back at once.

    The environment variable EXODUS_KEEP_MEMORY, in bytes, sets it when the package is imported; without it, it is
    512 MiB. With 0, outputs are allocated by torch. Before torch 2.11 it is always 0.

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
    """Bytes that freed outputs have left and no output uses at the moment."""
    return ops.kept_memory()[0]
