"""Convolutions with spikes on the CPU: each spike adds its channel's kernel to the outputs whose windows see it.

As in `exodus_core.sparse.product`, forward and dL/dW take time in proportion to the spikes, and torch's dense
convolution takes what is not sparse. dL/ds is dense, or computed from a dL/dx of which most is zero, as behind a max
pool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from exodus_core import ops
from exodus_core.errors import ArgumentError
from exodus_core.once_differentiable import once_differentiable
from exodus_core.sparse.product import Found, check_operands, found_sparse, learns, may_be_sparse, of_dtype
from exodus_core.sparse.spikes import PackedSpikes

# As _MAX_DENSITY of product, by the least number of outputs of a group: the share for any number of input channels, and
# that for few, of which oneDNN's blocks of channels are mostly padding. Measured on Zen 4 with AVX-512 for 1 to 16
# inputs, 4 to 64 outputs, kernels of 3x3 and 5x5 and images of 12x12 and 28x28: at 0.20 at least the sums take as long
# as the dense convolutions, at 0.30 from 32 outputs on or with four inputs; with AVX2 at 0.28 and 0.40.
_MAX_DENSITY = ((32, 0.25, 0.3), (4, 0.18, 0.25))
_FEW_INPUTS = 4
# With strides, or more than five taps in a row, the kernel looks the windows of a spike up, which takes twice as long.
_MAX_DENSITY_OF_LISTED = ((32, 0.15, 0.15), (8, 0.08, 0.08))
_MAX_TAPS_IN_A_ROW = 5
# Of ones alone, with five taps in a row, which tables have: the share there takes 0.5 to 0.9 of the dense time.
_MAX_DENSITY_BY_TABLES = 0.4
_MOST_INPUTS_BY_TABLES, _LEAST_OUTPUTS_BY_TABLES = 32, 16
# kLeastPlaces and kMostPlaces of csrc/cpu/table_convolution.h.
_LEAST_WINDOWS, _MOST_WINDOWS_OF_AN_IMAGE = 2048, 4096
# A kernel of one element is a product of matrices.
_MAX_DENSITY_OF_ONE_TAP = 0.04
# In float64 torch multiplies matrices of unfolded windows: the sums take less time up to 0.5 at least.
_FLOAT64_SHARE = 2.0

# The share of elements of dL/dx that are not 0 at which dL/ds from those takes no longer than the transposed
# convolution, by the least number of outputs. Measured as the limits above: behind a max pool of 2 by 2, a quarter of
# them, it takes 0.4 to 0.85 of that time with 32 outputs and more, in float64 a third, in float16 a thirtieth; behind
# one of 3 by 3 half. Weights that do not fit in the second-level cache cost it more.
_MAX_GRADIENT_DENSITY = ((32, 0.3), (8, 0.15))
_MOST_WEIGHTS = 2**18

Size = int | Sequence[int]


class Windows(NamedTuple):
    """Geometry of a convolution's windows, for two dimensions of space."""

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def max_density(
    weight_shape: Sequence[int], stride: Sequence[int], groups: int, dtype: torch.dtype, by_tables: bool = False
) -> float:
    """The largest share of spikes for which a convolution is computed from the spikes.

    Args:
        weight_shape: (N_out, channels / groups, *kernel).
        stride: of each dimension of space.
        groups: groups of channels.
        dtype: of the weight.
        by_tables: all spikes are one, and images of many are computed by tables if the weight allows it.
    """
    outputs, inputs, *kernel = weight_shape
    listed = max(stride) > 1 or kernel[-1] > _MAX_TAPS_IN_A_ROW
    few = inputs <= _FEW_INPUTS
    shares = _MAX_DENSITY_OF_LISTED if listed else _MAX_DENSITY
    share = next((share[few] for least, *share in shares if outputs // groups >= least), 0.0)
    share = min(share, _MAX_DENSITY_OF_ONE_TAP) if math.prod(kernel) == 1 else share
    tables = by_tables and not listed and kernel[-1] == _MAX_TAPS_IN_A_ROW and inputs <= _MOST_INPUTS_BY_TABLES
    if tables and outputs // groups >= _LEAST_OUTPUTS_BY_TABLES:
        share = _MAX_DENSITY_BY_TABLES
    return share * _FLOAT64_SHARE if dtype == torch.float64 else of_dtype(share, dtype)


def max_gradient_density(weight_shape: Sequence[int], windows: Windows, dtype: torch.dtype) -> float:
    """The largest share of elements of dL/dx that are not 0 for which dL/ds is computed from them.

    Args:
        weight_shape: (N_out, channels / groups, height, width).
        windows: their geometry.
        dtype: of the weight.
    """
    if windows.groups > 1 or max(windows.dilation) > 1 or math.prod(weight_shape) > _MOST_WEIGHTS:
        return 0.0
    return of_dtype(next((share for least, share in _MAX_GRADIENT_DENSITY if weight_shape[0] >= least), 0.0), dtype)


def conv1d(
    spikes: Tensor | PackedSpikes,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    exact: bool = False,
) -> Tensor:
    """Convolution over (channels, length), as torch.nn.functional.conv1d; see `conv2d`."""
    return _convolution(1, spikes, weight, bias, (stride, padding, dilation), groups, exact)


def conv2d(
    spikes: Tensor | PackedSpikes,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    exact: bool = False,
) -> Tensor:
    """Convolution over (channels, height, width), as torch.nn.functional.conv2d, in time proportional to the spikes.

    An output is its bias, to which its inputs are added in ascending order of channel, row and column, in float32 or
    float64. With five taps in a row and 2048 windows or more, in images of at most 4096 windows of which 15 % and more
    are ones, those of each row of the kernel are added first, and then the rows in this order. dL/dW is
    summed over groups of images, in a fixed order. The bits are the same on every CPU and with any number of threads,
    and those of the dense convolution but for rounding. Inputs of 0 contribute nothing, whatever the weight. In a graph
    of torch.compile the convolution is dense.

    Args:
        spikes: shape (..., channels, height, width): zeros and ones, or any numbers of which most are 0, in the dtype
            of weight, as bool or as integers; or packed, with three features.
        weight: shape (N_out, channels / groups, height, width), float32, float64, float16 or bfloat16.
        bias: shape (N_out,), with the dtype of weight; None: none.
        stride, padding, dilation: a number, or one for each dimension of space.
        groups: groups of channels that do not see each other.
        exact: compute the dense convolution, whose bits are torch's.

    Returns:
        Shape (..., N_out, height, width), with the dtype of weight. Differentiable in all three; computed from spikes,
        once.

    Raises:
        ArgumentTypeError: an argument has the wrong type or dtype.
        ArgumentError: an argument has the wrong value or shape.
    """
    return _convolution(2, spikes, weight, bias, (stride, padding, dilation), groups, exact)


def _convolution(
    dimensions: int,
    spikes: Tensor | PackedSpikes,
    weight: Tensor,
    bias: Tensor | None,
    options: tuple[Size, Size, Size],
    groups: int,
    exact: bool,
) -> Tensor:
    _check(dimensions, spikes, weight, bias, groups)
    names = ("stride", "padding", "dilation")
    stride, padding, dilation = (
        _per_dimension(name, value, dimensions, 0 if name == "padding" else 1)
        for name, value in zip(names, options, strict=True)
    )
    lead, (channels, *size) = spikes.shape[: -dimensions - 1], spikes.shape[-dimensions - 1 :]
    images = math.prod(lead)
    windows = Windows(_plane(size), _plane(stride), _plane(padding, 0), _plane(dilation), groups)
    limit = max_density(weight.shape, stride, groups, weight.dtype)
    limit_of_ones = max_density(weight.shape, stride, groups, weight.dtype, _has_tables(images, windows, weight))
    products = images * math.prod(size) * weight.numel()
    if (
        not exact
        and not torch.compiler.is_compiling()
        and may_be_sparse(spikes, weight, products)
        and all(_fits(windows, weight))
    ):
        found = found_sparse(spikes, dimensions + 1, weight.dtype, limit_of_ones)
        if found is not None and (found.values is None or _density(found) <= limit):
            return _sparse(lead, *found, weight, bias, windows)
    x = spikes.unpack(weight.dtype) if isinstance(spikes, PackedSpikes) else spikes
    x = x if x.is_floating_point() else x.to(weight.dtype)
    y = (F.conv1d if dimensions == 1 else F.conv2d)(
        x.reshape(images, channels, *size), weight, bias, stride, padding, dilation, groups
    )
    return y.view(*lead, *y.shape[1:])


def _has_tables(images: int, windows: Windows, weight: Tensor) -> bool:
    """True if images of so many windows have tables, given a weight with five taps in a row and no stride."""
    taps, count = _plane(weight.shape[2:]), 1
    for size, padding, dilation, kernel in zip(windows.size, windows.padding, windows.dilation, taps, strict=True):
        count *= size + 2 * padding - dilation * (kernel - 1)
    return windows.dilation[1] == 1 and images * count >= _LEAST_WINDOWS and count <= _MOST_WINDOWS_OF_AN_IMAGE


def _density(found: Found) -> float:
    assert found.values is not None
    return ops.count_spikes(found.bits) / max(found.values.numel(), 1)


def _fits(windows: Windows, weight: Tensor) -> list[bool]:
    """True for each dimension of space in which the kernel fits in the image; torch raises the error if it does not."""
    taps = _plane(weight.shape[2:])
    zipped = zip(windows.size, windows.padding, windows.dilation, taps, strict=True)
    return [size + 2 * padding >= dilation * (kernel - 1) + 1 for size, padding, dilation, kernel in zipped]


def _plane(values: Sequence[int], lead: int = 1) -> tuple[int, int]:
    """Two dimensions of space, of which the first has size 1 if there is one only."""
    return (lead, values[0]) if len(values) == 1 else (values[0], values[1])


def _sparse(
    lead: torch.Size,
    source: Tensor | None,
    bits: Tensor,
    values: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    windows: Windows,
) -> Tensor:
    space = weight.dim() - 2
    kernel = weight.unsqueeze(2) if space == 1 else weight
    bias = bias if bias is None else bias.contiguous()
    if learns(source, weight, bias):
        y = SpikeConvolution.apply(source, bits, values, kernel, bias, windows)  # type: ignore[no-untyped-call]
    else:
        y = ops.spike_convolution(bits, values, kernel.contiguous(), bias, *windows)
    return y.view(*lead, weight.shape[0], *y.shape[4 - space :])  # type: ignore[no-any-return]


class SpikeConvolution(torch.autograd.Function):
    """The convolution of spikes, as bits and perhaps values; `source` takes the gradient of the spikes."""

    @staticmethod
    def forward(
        ctx: Any,
        source: Tensor | None,
        bits: Tensor,
        values: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        windows: Windows,
    ) -> Tensor:
        ctx.save_for_backward(bits, values, weight)
        ctx.windows = windows
        ctx.source = None if source is None else (source.shape, source.dtype)
        return ops.spike_convolution(bits, values, weight.contiguous(), bias, *windows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        bits, values, weight = ctx.saved_tensors
        wants_source, _, _, wants_weight, wants_bias, _ = ctx.needs_input_grad
        windows: Windows = ctx.windows
        grad, weight = grad.contiguous(), weight.contiguous()
        grad_source = grad_weight = grad_bias = None
        if wants_source:
            shape, dtype = ctx.source
            grad_source = _input_gradient(grad, weight, windows).view(shape).to(dtype)
        if wants_weight:
            grad_weight, grad_bias = ops.spike_convolution_weight(bits, values, grad, weight, *windows)
        if wants_bias and grad_bias is None:
            grad_bias = grad.sum((0, 2, 3))
        return grad_source, None, None, grad_weight, grad_bias if wants_bias else None, None


def _input_gradient(grad: Tensor, weight: Tensor, windows: Windows) -> Tensor:
    """The gradient of the input: from the elements of grad that are not 0 if they are few, as behind a max pool."""
    limit = max_gradient_density(weight.shape, windows, weight.dtype)
    if limit and ops.may_be_cached(grad):  # a batch of gradients hides its elements
        found = found_sparse(grad, 3, grad.dtype, limit)
        if found is not None:
            return ops.sparse_gradient_convolution(found.bits, grad, weight, *windows[:3])
    return _transposed(grad, weight, windows)


def _transposed(grad: Tensor, weight: Tensor, windows: Windows) -> Tensor:
    """The gradient of the input as a transposed convolution."""
    if grad.dtype == torch.float64:  # torch's backward pass takes 0.45 to 0.8 times that time, and the memory of x
        size = (grad.shape[0], weight.shape[1] * windows.groups, *windows.size)
        like = grad.new_empty(()).expand(size)
        _, stride, padding, dilation, groups = windows
        options = (None, stride, padding, dilation, False, (0, 0), groups, (True, False, False))
        input_grad: Tensor = torch.ops.aten.convolution_backward.default(grad, like, weight, *options)[0]
        return input_grad.contiguous()
    taps, outputs = weight.shape[2:], grad.shape[2:]
    missed = [  # behind the last window
        windows.size[i]
        + 2 * windows.padding[i]
        - windows.dilation[i] * (taps[i] - 1)
        - 1
        - (outputs[i] - 1) * windows.stride[i]
        for i in range(2)
    ]
    if max(windows.stride) > 1:  # 0.5 to 1 times the time that way on AVX2, where a stride of 1 would take up to twice
        grad, weight = (each.to(memory_format=torch.channels_last) for each in (grad, weight))
    found = F.conv_transpose2d(
        grad, weight, None, windows.stride, windows.padding, missed, windows.groups, windows.dilation
    )
    return found.contiguous()


def _per_dimension(name: str, value: Size, dimensions: int, least: int) -> tuple[int, ...]:
    values = (value,) * dimensions if isinstance(value, int) else tuple(value)
    if len(values) != dimensions or any(type(v) is not int or v < least for v in values):
        raise ArgumentError(name, f"an integer of at least {least}, or {dimensions} of them", repr(value))
    return values


def _check(dimensions: int, spikes: Tensor | PackedSpikes, weight: Tensor, bias: Tensor | None, groups: int) -> None:
    check_operands(spikes, weight, bias)
    space = "length" if dimensions == 1 else "height, width"
    if weight.dim() != dimensions + 2 or 0 in weight.shape:
        raise ArgumentError("weight", f"of shape (N_out, channels / groups, {space})", tuple(weight.shape))
    if type(groups) is not int or groups < 1 or weight.shape[0] % groups:
        raise ArgumentError("groups", f"a divisor of the {weight.shape[0]} outputs", repr(groups))
    channels = weight.shape[1] * groups
    if len(spikes.shape) < dimensions + 1 or spikes.shape[-dimensions - 1] != channels:
        raise ArgumentError("spikes", f"of shape (..., {channels}, {space})", tuple(spikes.shape))
    if isinstance(spikes, PackedSpikes) and spikes.features != dimensions + 1:
        raise ArgumentError("spikes", f"packed with {dimensions + 1} features", spikes.features)
