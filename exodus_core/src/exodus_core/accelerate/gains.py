"""Products of an input over all steps with a gain, in memory of the cache of outputs.

The system clears the pages of what torch allocates for them, in each step of training: that takes longer than the
product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exodus_core import ops
from exodus_core.autograd import is_differentiated
from exodus_core.sparse.spikes import watched

# The C library keeps the memory of smaller tensors itself.
_MIN_CACHED_BYTES = 2**18


def times(x: Tensor, gain: float | Tensor) -> Tensor:
    """x * gain, with its bits and those of its gradients. Large products on the CPU are contiguous.

    Args:
        x: input, any shape.
        gain: a number, or a tensor that broadcasts with x.
    """
    if (
        x.nbytes < _MIN_CACHED_BYTES
        or not ops.may_be_cached(x)
        or watched()
        or (isinstance(gain, Tensor) and widens(x, gain))
    ):
        return x * gain
    if is_differentiated(x, gain if isinstance(gain, Tensor) else None):
        return Times.apply(x, gain)  # type: ignore[no-any-return, no-untyped-call]
    return _product(x, gain)


def widens(x: Tensor, gain: Tensor) -> bool:
    """True if x * gain has another shape or dtype than x."""
    return torch.result_type(x, gain) != x.dtype or torch.broadcast_shapes(x.shape, gain.shape) != x.shape


def _product(x: Tensor, other: float | Tensor) -> Tensor:
    """x * other in cached memory; not differentiable."""
    if not ops.may_be_cached(x):
        return x * other
    return torch.mul(x, other, out=ops.output(x, x.shape))


class Times(torch.autograd.Function):
    """x * gain, whose output and gradients are in cached memory; differentiable again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: float | Tensor) -> Tensor:
        wants_gain = ctx.needs_input_grad[1]
        ctx.save_for_backward(x if wants_gain else None, gain if isinstance(gain, Tensor) else None)
        ctx.number = None if isinstance(gain, Tensor) else gain
        return _product(x, gain)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, gain = ctx.saved_tensors
        factor = ctx.number if gain is None else gain
        again = torch.is_grad_enabled()  # the gradient is to be differentiated
        grad_x = grad_gain = None
        if ctx.needs_input_grad[0]:
            grad_x = grad * factor if again else _product(grad, factor)
        if ctx.needs_input_grad[1]:
            by_element = grad * x if again else _product(grad, x)
            grad_gain = by_element.sum_to_size(gain.shape).to(gain.dtype)
        return grad_x, grad_gain
