"""Spikes as bits: zeros and ones, eight to a byte, the first in the least significant bit, as on the wire.

The wire format runs on over the rows of a tensor; here each row, the last axis, has bytes of its own, so that a tensor
can be cut and joined along all others.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from exodus_core import ops
from exodus_core.arguments import FLOATS
from exodus_core.errors import ArgumentError

_BITS = 8
# What operator pack_spikes says of rows that are zeros and ones.
_ONES = 1


def pack(spikes: Tensor) -> Tensor:
    """The bits of a tensor: where it is not 0.

    Args:
        spikes: shape (..., n), bool, integer or float; of zeros and ones, if it is to come back from `unpack`.

    Returns:
        uint8, shape (..., ceil(n / 8)); element i is bit i % 8 of byte i // 8, and the bits behind the last one are 0.

    Raises:
        ArgumentError: it has no axis.
    """
    if spikes.dim() == 0:
        raise ArgumentError("spikes", "of shape (..., n)", ())
    if spikes.device.type == "cpu" and ops.HAS_BITS:
        return _packed_on_cpu(spikes != 0)[0]
    bits = F.pad(spikes != 0, (0, -spikes.shape[-1] % _BITS)).unflatten(-1, (-1, _BITS))
    powers = 2 ** torch.arange(_BITS, dtype=torch.uint8, device=spikes.device)
    packed: Tensor = (bits * powers).sum(-1, dtype=torch.uint8)
    return packed


def pack_if_binary(tensor: Tensor) -> Tensor | None:
    """`pack` of a tensor of zeros and ones; None if it has another element, or no axis. Waits for a GPU."""
    if tensor.dim() == 0:
        return None
    if tensor.device.type == "cpu" and tensor.dtype in FLOATS and ops.HAS_BITS:
        bits, is_binary = _packed_on_cpu(tensor)
        return bits if is_binary else None
    if tensor.dtype != torch.bool and tensor.numel() > 0:
        low, high = torch.addcmul(tensor, tensor, tensor, value=-1).aminmax()  # x - x x, which is 0 of 0 and 1 alone
        if not bool((low == 0) & (high == 0)):
            return None
    return pack(tensor)


def unpack(bits: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """The tensor of `dtype`, shape (..., n), whose bits `pack` gave."""
    lead = bits.shape[:-1]
    if bits.device.type == "cpu" and dtype in FLOATS and ops.HAS_BITS:
        rows = bits.reshape(math.prod(lead), bits.shape[-1]).contiguous()
        return ops.unpack_spikes(rows, n, torch.empty(0, dtype=dtype, device="cpu")).view(*lead, n)
    shifts = torch.arange(_BITS, dtype=torch.uint8, device=bits.device)
    return ((bits.unsqueeze(-1) >> shifts) & 1).flatten(-2)[..., :n].to(dtype).contiguous()


def _packed_on_cpu(tensor: Tensor) -> tuple[Tensor, bool]:
    """Bits of a float or bool tensor, and true if it is zeros and ones."""
    *lead, n = tensor.shape
    bits, kind = ops.pack_spikes(tensor.detach().reshape(math.prod(lead), n).contiguous(), 1.0)
    return bits.view(*lead, -(-n // _BITS)), kind == _ONES
