"""Products with spikes on the CPU: x = s W^T computed as what it is, a sum of the rows of W^T that spikes select.

Forward and dL/dW take time in proportion to the spikes; dL/ds is dense, since every neuron has a gradient. How many
spikes are few is measured in every call; the rest goes to torch's dense product. A zero contributes nothing here, where
in a dense product it turns an infinite or NaN weight into NaN.
"""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from exodus_core import arguments, ops
from exodus_core.errors import ArgumentError, ArgumentTypeError
from exodus_core.once_differentiable import once_differentiable
from exodus_core.sparse.spikes import PackedSpikes, watched

# Largest share of elements that are not zero at which the sums, forward and backward together, take no longer than the
# dense products, by the least number of outputs; measured on Zen 4 with AVX-512 (docs/sparse.md), and less on purpose.
# Few outputs leave little to save: there, finding the spikes takes the time.
_MAX_DENSITY = ((32, 0.3), (8, 0.2), (4, 0.05), (1, 0.02))
# Processors multiply matrices of bfloat16 twice as fast, and more than that if there are few outputs.
_BFLOAT16_SHARE = 0.5
_MAX_DENSITY_OF_BFLOAT16 = ((128, 0.15), (64, 0.1), (32, 0.05), (16, 0.02))
# Fewer rows than this do not pay for transposing the weight, and so few products are done before the spikes are found.
_MIN_ROWS, _MIN_PRODUCTS = 16, 2**20
# The C library keeps the memory of smaller outputs itself.
_MIN_CACHED_BYTES = 2**18


def _read_environment() -> bool:
    asked = os.environ.get("EXODUS_SPARSE", "1") or "1"
    if asked not in ("0", "1"):
        raise ArgumentError("EXODUS_SPARSE", "0 or 1", repr(asked))
    return asked == "1"


#: False if the environment variable EXODUS_SPARSE is 0: then every product is dense.
ENABLED = _read_environment() and ops.HAS_BITS


def max_density(outputs: int, dtype: torch.dtype) -> float:
    """The largest share of spikes for which a product with so many outputs is computed from the spikes."""
    shares = _MAX_DENSITY_OF_BFLOAT16 if dtype == torch.bfloat16 else _MAX_DENSITY
    return next((share for least, share in shares if outputs >= least), 0.0)


def of_dtype(max_density: float, dtype: torch.dtype) -> float:
    """The largest share of spikes for this dtype, given that for float32."""
    return max_density * _BFLOAT16_SHARE if dtype == torch.bfloat16 else max_density


def linear(spikes: Tensor | PackedSpikes, weight: Tensor, bias: Tensor | None = None, *, exact: bool = False) -> Tensor:
    """x = s W^T + b (5), as torch.nn.functional.linear, in time proportional to the spikes where they are few.

    Each output is summed over its inputs in ascending order, in float32 or float64, and the bias added last; each
    element of dL/dW over the rows in blocks, whose sums are added in turn. So the bits are the same on every CPU and
    with any number of threads, and those of the dense product but for rounding. Inputs of 0 contribute nothing,
    whatever the weight.

    Args:
        spikes: s, shape (..., N_in): zeros and ones, or any numbers of which most are 0, in the dtype of weight, as
            bool or as integers; or packed.
        weight: W, shape (N_out, N_in), float32, float64, float16 or bfloat16 (the last two are computed in float32).
        bias: b, shape (N_out,), with the dtype of weight; None: none.
        exact: compute the dense product, whose bits are torch's.

    Returns:
        x, shape (..., N_out), with the dtype of weight. Differentiable in all three; computed from spikes, once.

    Raises:
        ArgumentTypeError: an argument has the wrong type or dtype.
        ArgumentError: an argument has the wrong shape.
    """
    _check(spikes, weight, bias)
    if isinstance(spikes, PackedSpikes):
        return _of_packed(spikes.flatten(), weight, bias, exact)
    x = spikes
    if _autocast():
        return F.linear(x if x.is_floating_point() else x.to(weight.dtype), weight, bias)
    if torch.compiler.is_compiling():
        x = x.to(weight.dtype)
        return F.linear(x, weight, bias) if exact or not _may_be_sparse(x, weight) else _compiled(x, weight, bias)
    if exact or not _may_be_sparse(x, weight):
        return _dense(x.to(weight.dtype), weight, bias)
    found = found_sparse(x, 1, weight.dtype, max_density(weight.shape[0], weight.dtype))
    if found is None:
        return _dense(x.to(weight.dtype), weight, bias)
    return _sparse(x.shape[:-1], *found, weight, bias)


# The kinds of operator pack_spikes.
_DENSE, _ONES, _VALUES = range(3)


class Found(NamedTuple):
    """Spikes that are few: what takes their gradient, their bits, and their values if they are not all one."""

    source: Tensor | None
    bits: Tensor
    values: Tensor | None


def found_sparse(spikes: Tensor | PackedSpikes, features: int, dtype: torch.dtype, max_density: float) -> Found | None:
    """The spikes of an input on the CPU, or None if their share exceeds max_density.

    Args:
        spikes: shape (..., *row), float of this dtype, bool or integer; or packed.
        features: how many dimensions at the end are a row.
        dtype: of the values, if the spikes are not all one.
        max_density: the largest share.
    """
    if isinstance(spikes, PackedSpikes):
        return Found(spikes.graph, spikes.bits, None) if spikes.density <= max_density else None
    x = spikes if spikes.dtype in (dtype, torch.bool) else spikes.to(dtype)
    lead = x.shape[: x.dim() - features]
    rows = x.detach().reshape(math.prod(lead), math.prod(x.shape[len(lead) :])).contiguous()
    bits, kind = ops.pack_spikes(rows, max_density)
    return None if kind == _DENSE else Found(x, bits, rows if kind == _VALUES else None)


def _of_packed(spikes: PackedSpikes, weight: Tensor, bias: Tensor | None, exact: bool) -> Tensor:
    found = None
    if not exact and not torch.compiler.is_compiling() and _may_be_sparse(spikes, weight):
        found = found_sparse(spikes, 1, weight.dtype, max_density(weight.shape[0], weight.dtype))
    if found is None:
        return _dense(spikes.unpack(weight.dtype), weight, bias)
    return _sparse(spikes.shape[:-1], *found, weight, bias)


def enough(products: int, rows: int = _MIN_ROWS) -> bool:
    """True if so many products, of so many rows, pay for looking for spikes."""
    return rows >= _MIN_ROWS and products >= _MIN_PRODUCTS


def _may_be_sparse(spikes: Tensor | PackedSpikes, weight: Tensor) -> bool:
    rows = math.prod(spikes.shape[:-1])
    return enough(rows * weight.numel(), rows) and may_be_sparse(spikes, weight, rows * weight.numel())


def may_be_sparse(spikes: Tensor | PackedSpikes, weight: Tensor, products: int) -> bool:
    """True if so many products may be computed from the spikes, by all that is known without looking at them."""
    return (
        ENABLED
        and weight.device.type == "cpu"
        and spikes.device.type == "cpu"
        and enough(products)
        # Conversions, traces, tangents and maps over tensors are those of the dense product.
        and not torch.is_autocast_enabled("cpu")
        and not watched()
    )


def learns(*tensors: Tensor | None) -> bool:
    """True if a gradient is wanted with respect to one of the tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _sparse(
    lead: torch.Size,
    source: Tensor | None,
    bits: Tensor,
    values: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    if learns(source, weight, bias):
        found = SpikeLinear.apply(source, bits, values, weight, bias)  # type: ignore[no-untyped-call]
    else:
        found = ops.spike_linear(bits, values, weight.contiguous(), bias if bias is None else bias.contiguous())
    return found.view(*lead, weight.shape[0])  # type: ignore[no-any-return]


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of two matrices, with torch's bits, on the CPU in memory of the cache of outputs; not differentiable."""
    if not (ops.may_be_cached(a) and ops.may_be_cached(b)):
        return a @ b
    return torch.mm(a, b, out=ops.output(a, (a.shape[0], b.shape[1])))


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear, in cached memory where that is large and nothing watches how it is computed."""
    rows = math.prod(x.shape[:-1])
    if (
        rows * max(weight.shape) * x.element_size() < _MIN_CACHED_BYTES
        or x.device.type != "cpu"
        or weight.device.type != "cpu"
        or not ops.HAS_BITS
        or not (bias is None or x.is_contiguous())  # which torch computes in another way
        or watched()
        or not learns(x, weight, bias)
    ):
        return F.linear(x, weight, bias)
    found: Tensor = DenseLinear.apply(x.reshape(rows, x.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]
    return found.view(*x.shape[:-1], weight.shape[0])


class DenseLinear(torch.autograd.Function):
    """F.linear of a matrix x, with its bits, whose output and dL/dx are in cached memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        if bias is None:
            return product(x, weight.T)
        return torch.addmm(bias, x, weight.T, out=ops.output(x, (x.shape[0], weight.shape[0])))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        again = torch.is_grad_enabled()  # the gradient is to be differentiated
        grad_x = None
        if wants_x:
            grad_x = grad @ weight if again else product(grad, weight)
        return grad_x, grad.T @ x if wants_weight else None, grad.sum(0) if wants_bias else None


class SpikeLinear(torch.autograd.Function):
    """The product of spikes, as bits and perhaps values, with a weight; `source` takes the gradient of the spikes."""

    @staticmethod
    def forward(
        ctx: Any, source: Tensor | None, bits: Tensor, values: Tensor | None, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(bits, values, weight)
        ctx.source = None if source is None else (source.shape, source.dtype)
        return ops.spike_linear(bits, values, weight.contiguous(), bias if bias is None else bias.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        bits, values, weight = ctx.saved_tensors
        wants_source, _, _, wants_weight, wants_bias = ctx.needs_input_grad
        grad = grad.contiguous()
        grad_source = grad_weight = None
        if wants_source:
            shape, dtype = ctx.source
            grad_source = product(grad, weight).view(shape).to(dtype)
        if wants_weight:
            grad_weight = ops.spike_linear_weight(bits, values, grad, weight.shape[1])
        return grad_source, None, None, grad_weight, grad.sum(0) if wants_bias else None


# A graph that is compiled has fixed shapes: there the choice is made inside of an operator.
@torch.library.custom_op("exodus::linear", mutates_args=())
def _compiled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    with torch.no_grad():
        found = linear(x, weight, bias)
    return found.contiguous()


@_compiled.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return weight.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.custom_op("exodus::linear_weight", mutates_args=())
def _compiled_weight(x: Tensor, grad: Tensor) -> Tensor:
    return weight_gradient(x, grad)


@_compiled_weight.register_fake
def _(x: Tensor, grad: Tensor) -> Tensor:
    return grad.new_empty((grad.shape[-1], x.shape[-1]))


def weight_gradient(spikes: Tensor, grad: Tensor) -> Tensor:
    """dL/dW of `linear` (14): the sum over rows of grad s^T, from dL/dx; without a graph.

    Args:
        spikes: s, shape (..., N_in).
        grad: dL/dx, shape (..., N_out), with the dtype of spikes.

    Returns:
        dL/dW, shape (N_out, N_in).
    """
    count = math.prod(spikes.shape[:-1])  # not -1, which is ambiguous if there are no neurons
    with torch.no_grad():
        rows = spikes.reshape(count, spikes.shape[-1]).contiguous()
        rows_of_grad = grad.reshape(count, grad.shape[-1]).contiguous()
        like = grad.new_empty(()).expand(grad.shape[-1], spikes.shape[-1])
        if _may_be_sparse(rows, like):
            found = found_sparse(rows, 1, grad.dtype, max_density(like.shape[0], grad.dtype))
            if found is not None:
                return ops.spike_linear_weight(found.bits, found.values, rows_of_grad, rows.shape[1])
        return rows_of_grad.T @ rows


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    wants_x, wants_weight, wants_bias = ctx.needs_input_grad
    return (
        grad @ weight if wants_x else None,
        _compiled_weight(x, grad) if wants_weight else None,
        grad.flatten(0, -2).sum(0) if wants_bias else None,
    )


_compiled.register_autograd(_backward, setup_context=_setup)


def _autocast() -> bool:
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


def check_operands(spikes: Tensor | PackedSpikes, weight: Tensor, bias: Tensor | None) -> None:
    """Checks all of a product's or convolution's operands but the shapes of spikes and weight."""
    if not isinstance(spikes, Tensor | PackedSpikes) or (isinstance(spikes, Tensor) and spikes.is_complex()):
        got = spikes.dtype if isinstance(spikes, Tensor) else type(spikes).__name__
        raise ArgumentTypeError("spikes", "a tensor of floats, integers or bool, or PackedSpikes", got)
    if not isinstance(weight, Tensor):
        raise ArgumentTypeError("weight", "a torch.Tensor", type(weight).__name__)
    if weight.dtype not in arguments.FLOATS:
        raise ArgumentTypeError("weight", "float32, float64, float16 or bfloat16", weight.dtype)
    if isinstance(spikes, Tensor):
        arguments.check_dense("spikes", spikes)
        if spikes.is_floating_point() and spikes.dtype != weight.dtype and not _autocast():
            raise ArgumentTypeError("spikes", f"of the dtype of weight, {weight.dtype}, bool or integer", spikes.dtype)
    if bias is None:
        return
    if not isinstance(bias, Tensor) or (bias.dtype != weight.dtype and not _autocast()):
        got = bias.dtype if isinstance(bias, Tensor) else type(bias).__name__
        raise ArgumentTypeError("bias", f"a tensor of the dtype of weight, {weight.dtype}", got)
    if bias.shape != weight.shape[:1]:
        raise ArgumentError("bias", f"of shape {tuple(weight.shape[:1])}", tuple(bias.shape))


def _check(spikes: Tensor | PackedSpikes, weight: Tensor, bias: Tensor | None) -> None:
    check_operands(spikes, weight, bias)
    if weight.dim() != 2:
        raise ArgumentError("weight", "of shape (N_out, N_in)", tuple(weight.shape))
    features = spikes.columns if isinstance(spikes, PackedSpikes) else (spikes.shape or (0,))[-1]
    if not len(spikes.shape) or features != weight.shape[1]:
        raise ArgumentError("spikes", f"of shape (..., {weight.shape[1]})", tuple(spikes.shape))
