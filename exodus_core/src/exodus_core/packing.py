"""Spikes as bits: zeros and ones, eight to a byte, the first in the least significant bit, as on the wire.

The wire format runs on over the rows of a tensor; here each row, the last axis, has bytes of its own, so that a tensor
can be cut and joined along all others.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from exodus_core.errors import ArgumentError

_BITS = 8


def is_binary(tensor: Tensor) -> bool:
    """True if all elements are 0 or 1. Waits for a GPU. -0 is 0."""
    if tensor.dtype == torch.bool or tensor.numel() == 0:
        return True
    low, high = torch.addcmul(tensor, tensor, tensor, value=-1).aminmax()  # x - x x, which is 0 of 0 and 1 alone
    return bool((low == 0) & (high == 0))


def pack(spikes: Tensor) -> Tensor:
    """The bits of a tensor of zeros and ones.

    Args:
        spikes: shape (..., n), bool, integer or float; all elements 0 or 1 (`is_binary`), which is not checked.

    Returns:
        uint8, shape (..., ceil(n / 8)); element i is bit i % 8 of byte i // 8, and the bits behind the last one are 0.

    Raises:
        ArgumentError: it has no axis.
    """
    if spikes.dim() == 0:
        raise ArgumentError("spikes", "of shape (..., n)", ())
    bits = F.pad(spikes.float(), (0, -spikes.shape[-1] % _BITS)).unflatten(-1, (-1, _BITS))
    powers = 2.0 ** torch.arange(_BITS, device=spikes.device)
    packed: Tensor = (bits @ powers).to(torch.uint8)
    return packed


def unpack(bits: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """The tensor of `dtype`, shape (..., n), whose bits `pack` gave."""
    shifts = torch.arange(_BITS, device=bits.device)
    bytes_as_bits = (torch.arange(1 << _BITS, device=bits.device).unsqueeze(1) >> shifts & 1).to(dtype)
    found = bytes_as_bits.index_select(0, bits.reshape(-1).int())
    return found.view(*bits.shape[:-1], bits.shape[-1] * _BITS)[..., :n].contiguous()
