"""Pools of torch, SpikingJelly and sinabs, which `accelerate` lets run on the kernels of `exodus_core.pooling`.

A library's pool is derived from torch's and calls it by super(). A class derived from the library's and from the one of
`exodus_core.nn`, in this order, is the library's in all but that call.
"""

from __future__ import annotations

import functools
import math
import sys
from typing import Any

import torch
from torch import Tensor

from exodus_core import nn
from exodus_core.pooling import avg_pool2d


class SumPool2d(torch.nn.LPPool2d):
    """torch.nn.LPPool2d of norm 1, as sinabs has it: the sums of windows, and no gradient where a sum is 0.

    It has torch's bits, and leaves out its powers of 1. Of another norm, or with ceil_mode, it is torch's.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The sums of the windows of x, shape (..., channels, height, width)."""
        if self.norm_type != 1 or self.ceil_mode:
            return super().forward(x)
        size = self.kernel_size
        mean = avg_pool2d(x, size, self.stride)
        return (mean.sign() * mean.abs().relu()).mul(math.prod(size) if isinstance(size, tuple) else size * size)


_TORCH: dict[type, type] = {torch.nn.MaxPool2d: nn.MaxPool2d, torch.nn.AvgPool2d: nn.AvgPool2d}
#: By module and name of a library's class, what is to compute for it.
_LIBRARIES: dict[tuple[str, str], type] = {
    ("spikingjelly.activation_based.layer", "MaxPool2d"): nn.MaxPool2d,
    ("spikingjelly.activation_based.layer", "AvgPool2d"): nn.AvgPool2d,
    ("sinabs.layers", "SumPool2d"): SumPool2d,
}


def counterpart(cls: type) -> type | None:
    """The class on the kernels in place of a class of pools, which is derived from it; None for all other classes."""
    if cls in _TORCH:
        return _TORCH[cls]
    for (module, name), computed in _LIBRARIES.items():
        if getattr(sys.modules.get(module), name, None) is cls:
            return _joined(cls, computed)
    return None


@functools.cache
def _joined(cls: type, computed: type) -> type:
    def reduced(self: Any, protocol: Any) -> tuple[Any, ...]:
        return _restored, (cls, computed), self.__dict__

    own = {"__doc__": cls.__doc__, "fused_from": cls, "__reduce_ex__": reduced}
    return type(f"Fused{cls.__name__}", (cls, computed), own)


def _restored(cls: type, computed: type) -> Any:
    """An instance for pickle and copy, whose attributes come next."""
    joined: Any = _joined(cls, computed)
    return joined.__new__(joined)
