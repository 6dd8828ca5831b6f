"""Pooling over (height, width) on the CPU, in the time that its memory takes.

torch's kernels for images that lie plane by plane read one element at a time, keep the place of each maximum in eight
bytes, and fill a gradient with zeros before they add to it. Those here compute vectors of windows, keep a byte, and
write a gradient once. The values are torch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from exodus_core import ops
from exodus_core.autograd import Operator, is_differentiated
from exodus_core.sparse.spikes import watched

Size = int | Sequence[int]

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Of a window of which a byte is to say where its largest value is: kMostPlaces of csrc/cpu/pooling.cpp.
_MOST_PLACES = 255


class Windows(NamedTuple):
    """Geometry of windows, along height and width."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


def max_pool2d(x: Tensor, kernel_size: Size, stride: Size | None = None, padding: Size = 0) -> Tensor:
    """The largest value of each window, as torch.nn.functional.max_pool2d, with its bits.

    Of equal values the first one gets the gradient, and of values with NaN the last NaN, as in torch. In float16 and
    bfloat16, gradients of places that several windows chose are summed in float32 and rounded once.

    The kernels take images on a CPU that lie plane by plane (contiguous), of float32, float64, float16 or bfloat16,
    and windows of at most 255 places. All else, and what torch.compile, torch.func, forward-mode differentiation or
    autocast see, is computed by torch's own function, which also raises the errors for wrong arguments.

    Args:
        x: shape (..., channels, height, width) with one or no dimension before.
        kernel_size, stride, padding: a number, or one for height and width; padding is at most half of kernel_size.
            stride is kernel_size if not given.

    Returns:
        Shape (..., channels, windows along height, windows along width), differentiable any number of times.
    """
    windows = _windows_of(x, kernel_size, stride, padding)
    if windows is None or windows.kernel_size[0] * windows.kernel_size[1] > _MOST_PLACES:
        found: Tensor = F.max_pool2d(x, kernel_size, stride, padding)  # type: ignore[arg-type]
        return found
    if is_differentiated(x):
        found, _ = MaxPool.apply(x, windows)  # type: ignore[no-untyped-call]
        return found
    return ops.max_pool2d(x, *windows, False)[0]


def avg_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window, as torch.nn.functional.avg_pool2d, with its bits in float32 and float64.

    float16 and bfloat16 are computed in float32 and rounded once, outputs as in torch, and gradients.

    Args:
        x, kernel_size, stride, padding: as of `max_pool2d`, and so is what the kernels take; windows of any size.
        count_include_pad: a window is divided by all of its places, not by those that lie in the image.
        divisor_override: the number that the sum is divided by instead; 1 gives sums.

    Returns:
        As `max_pool2d`.
    """
    windows = _windows_of(x, kernel_size, stride, padding)
    if windows is None or divisor_override == 0:
        return F.avg_pool2d(x, kernel_size, stride, padding, False, count_include_pad, divisor_override)  # type: ignore[arg-type]
    divisor = divisor_override
    if divisor is None:
        divisor = windows.kernel_size[0] * windows.kernel_size[1] if count_include_pad else 0
    if is_differentiated(x):
        found: Tensor = AvgPool.apply(x, windows, divisor)  # type: ignore[no-untyped-call]
        return found
    return ops.avg_pool2d(x, *windows, divisor)


def _windows_of(x: Tensor, kernel_size: Size, stride: Size | None, padding: Size) -> Windows | None:
    """The windows, if the kernels take them over x; None: torch computes them, or refuses them."""
    if torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter):
        return None
    pairs = [_pair(size) for size in (kernel_size, kernel_size if stride in (None, []) else stride, padding)]
    if (
        x.device.type != "cpu"
        or not ops.HAS_BITS
        or x.dtype not in _DTYPES
        or x.layout != torch.strided
        or x.dim() not in (3, 4)
        or x.numel() == 0
        or not x.is_contiguous()
        or None in pairs
        # Conversions, traces, tangents and maps over tensors are those of torch's function.
        or torch.is_autocast_enabled("cpu")
        or watched()
    ):
        return None
    windows = Windows(*pairs)  # type: ignore[arg-type]
    for size, kernel, step, before in zip(x.shape[-2:], *windows, strict=True):
        if kernel < 1 or step < 1 or not 0 <= 2 * before <= kernel or kernel > size + 2 * before:
            return None
    return windows


def _pair(value: Any) -> tuple[int, int] | None:
    """A number for height and one for width, or None."""
    if type(value) is int:
        return value, value
    if isinstance(value, Sequence) and len(value) in (1, 2) and all(type(size) is int for size in value):
        return value[0], value[-1]
    return None


class MaxPool(Operator):
    """The largest values, and the places of them in their windows."""

    @staticmethod
    def forward(x: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
        return ops.max_pool2d(x, *windows, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.windows = inputs
        ctx.size = tuple(x.shape[-2:])
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, None]:
        if grad is None:
            return None, None
        return MaxPoolGradient.apply(grad.contiguous(), *ctx.saved_tensors, ctx.size, ctx.windows), None  # type: ignore[no-untyped-call]


class MaxPoolGradient(Operator):
    """The gradient of the input of `MaxPool`, which is linear in that of the output."""

    @staticmethod
    def forward(grad: Tensor, places: Tensor, size: tuple[int, int], windows: Windows) -> Tensor:
        return ops.max_pool2d_backward(grad, places, size, *windows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, places, ctx.size, ctx.windows = inputs
        ctx.save_for_backward(places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (places,) = ctx.saved_tensors
        return _elements_at(grad, places, ctx.size[1], ctx.windows), None, None, None


def _elements_at(x: Tensor, places: Tensor, width: int, windows: Windows) -> Tensor:
    """The element of x that each window has at its place."""
    first_y, first_x = (
        torch.arange(places.shape[axis]) * windows.stride[axis] - windows.padding[axis] for axis in (-2, -1)
    )
    index = places.long()
    y = index // windows.kernel_size[1] + first_y.unsqueeze(1)
    index = y * width + index % windows.kernel_size[1] + first_x
    return x.flatten(-2).gather(-1, index.flatten(-2)).view(places.shape)


class AvgPool(Operator):
    """The means; `divisor` is what sums are divided by, or 0 for the number of their places in the image."""

    @staticmethod
    def forward(x: Tensor, windows: Windows, divisor: int) -> Tensor:
        return ops.avg_pool2d(x, *windows, divisor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.windows, ctx.divisor = inputs
        ctx.size = tuple(x.shape[-2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return AvgPoolGradient.apply(grad.contiguous(), ctx.size, ctx.windows, ctx.divisor), None, None  # type: ignore[no-untyped-call]


class AvgPoolGradient(Operator):
    """The gradient of the input of `AvgPool`; each is the other's backward pass."""

    @staticmethod
    def forward(grad: Tensor, size: tuple[int, int], windows: Windows, divisor: int) -> Tensor:
        return ops.avg_pool2d_backward(grad, size, *windows, divisor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, ctx.windows, ctx.divisor = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return AvgPool.apply(grad.contiguous(), ctx.windows, ctx.divisor), None, None, None  # type: ignore[no-untyped-call]
