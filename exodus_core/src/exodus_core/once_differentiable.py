"""Backward passes that raise an error if they are differentiated again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., Any]


class _Refused(torch.autograd.Function):
    """The first `count` tensors as they are; to differentiate them is an error."""

    generate_vmap_rule = True

    @staticmethod
    def forward(count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass  # its backward pass needs nothing

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError(
            "second derivatives of a spiking neuron, filter or sparse product are not computed: the gradient that "
            "create_graph=True kept was differentiated again"
        )


def once_differentiable(backward: Backward) -> Backward:
    """Decorator of an autograd function's backward pass, below @staticmethod: gradients are constants, never silently.

    torch's decorator of this name refuses a second derivative only if the gradients that come in require one. Those of
    a sum over the outputs are ones, which do not, while the result depends on what was saved all the same.
    """

    @functools.wraps(backward)
    def once(ctx: Any, *grads: Tensor | None) -> Any:
        if not torch.is_grad_enabled():
            return backward(ctx, *grads)
        with torch.no_grad():
            found = backward(ctx, *grads)
        sources = [tensor for tensor in (*ctx.saved_tensors, *grads) if tensor is not None and tensor.requires_grad]
        if not sources:
            return found
        tensors = [tensor for tensor in found if tensor is not None]
        refused = iter(_Refused.apply(len(tensors), *tensors, *sources))  # type: ignore[no-untyped-call]
        return tuple(None if tensor is None else next(refused) for tensor in found)

    return once
