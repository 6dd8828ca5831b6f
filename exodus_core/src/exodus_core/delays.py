"""Delays: y[t] = x[t - d], by linear interpolation between steps, with the exact gradient of that (docs/equations.md).

A delay of d steps, n = floor(d) and f = d - n, is y[t] = (1 - f) x[t-n] + f x[t-n-1], and x is zero before its first
step. So dy/dd = x[t-n-1] - x[t-n]: constant between integers, and at an integer the derivative to the right; at an
upper bound of the delays that to the left, so that no step is seen that lies further back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exodus_core import arguments
from exodus_core.errors import ArgumentError, ArgumentTypeError
from exodus_core.ops import compute_dtype
from exodus_core.pieces.carried import State, refuse_in_pieces
from exodus_core.pieces.continuation import kept
from exodus_core.sparse.product import linear

__all__ = ["delay", "delayed_linear"]

_INSTEAD = "use a layer of exodus_core.nn"


def delay(x: Tensor, delays: float | Tensor, *, max_delay: int | None = None, time_dim: int = 1) -> Tensor:
    """A signal delayed by `delays` steps, which may be fractions: axonal delays. Differentiable in x and delays.

    Takes time in proportion to the elements of x, whatever the delays.

    Args:
        x: shape (outer..., time, inner...), float32, float64, float16 or bfloat16 (the last two are computed in
            float32).
        delays: d, in steps: a float, or a tensor that broadcasts over the inner dimensions, such as one for each
            neuron. A delay of more steps than x has gives zeros.
        max_delay: upper bound of the delays, at least 1; None: none. It decides the side of the derivative there.
        time_dim: the axis of x that is time.

    Values of delays are checked if they are floats or on the CPU. On a GPU, which would have to wait for that, those
    out of range count as the nearest one in it, and have its gradient.

    Returns:
        y, with the shape and dtype of x. Where delays are a tensor, an infinite x is NaN a step later too.

    Raises:
        ArgumentTypeError: an argument has the wrong type or dtype.
        ArgumentError: an argument has the wrong value or shape; delays are negative, not finite or above max_delay.
    """
    refuse_in_pieces("exodus_core.delay", _INSTEAD)
    time_dim = arguments.check_signal("x", x, time_dim)
    max_delay = check_max_delay(max_delay)
    check_delays(delays, max_delay)
    signal = x.to(compute_dtype(x.dtype))
    if not isinstance(delays, Tensor):
        whole, part = _split_number(float(delays), max_delay, x.shape[time_dim])
        return _interpolated(_lag(signal, whole, time_dim), part, time_dim).to(x.dtype)
    _, values = arguments.parameter("delays", delays, x, time_dim)
    assert values is not None  # it is a tensor
    steps = x.shape[time_dim]
    flat = signal.contiguous().view(math.prod(x.shape[:time_dim]), steps, math.prod(x.shape[time_dim + 1 :]))
    # Beyond the last step all delays are the same.
    wholes, parts = _split(values, steps + 1 if max_delay is None else max_delay, open_end=max_delay is None)
    shifted: Tensor = _Shifted.apply(flat, wholes)  # type: ignore[no-untyped-call]
    return _interpolated(shifted, parts, 1).view(x.shape).to(x.dtype)


def delayed_linear(
    x: Tensor,
    weight: Tensor,
    delays: float | Tensor,
    bias: Tensor | None = None,
    *,
    max_delay: int,
    width: float | None = None,
    time_dim: int = 1,
    exact: bool = False,
) -> Tensor:
    """A product with a delay for each synapse: y_j[t] = b_j + sum over i of W_ji x_i[t - d_ji].

    Differentiable in x, weight, delays and bias. Computed as a product for each of the max_delay + 1 steps that a
    synapse may look back, each in time proportional to the spikes where these are few (`exodus_core.linear`).

    Args:
        x: shape (outer..., time, N_in), float32, float64, float16 or bfloat16 (the last two are computed in float32).
        weight: W, shape (N_out, N_in), with the dtype of x.
        delays: d, in steps, in [0, max_delay]: a float, or a tensor that broadcasts to the shape of weight.
        bias: b, shape (N_out,), with the dtype of x; None: none.
        max_delay: upper bound of the delays, at least 1.
        width: None: linear interpolation between the two nearest steps. A number: a normal density around the delay
            of this standard deviation, at the steps 0 to max_delay, divided by its sum: a wide one has gradients from
            afar, and may be narrowed as a training goes on.
        time_dim: the axis of x that is time, not the last one.
        exact: compute dense products, whose bits are torch's.

    Values of delays are checked as those of `delay`.

    Returns:
        y, shape (outer..., time, N_out), with the dtype of x.

    Raises:
        ArgumentTypeError: an argument has the wrong type or dtype.
        ArgumentError: an argument has the wrong value or shape; delays are negative, not finite or above max_delay.
    """
    refuse_in_pieces("exodus_core.delayed_linear", _INSTEAD)
    time_dim = arguments.check_signal("x", x, time_dim)
    if time_dim == x.dim() - 1:
        raise ArgumentError("time_dim", f"an axis of x with shape {tuple(x.shape)} before the last", time_dim)
    most = check_max_delay(max_delay)
    if most is None:
        raise ArgumentTypeError("max_delay", "an int", "NoneType")
    check_delays(delays, most)
    check_width(width)
    _check_weights(x, weight, delays, bias)
    dtype = compute_dtype(x.dtype)
    taps = _taps(weight.to(dtype), torch.as_tensor(delays, dtype=dtype, device=x.device), most, width)
    y = _sum_of_taps(x.to(dtype).movedim(time_dim, -2), taps, exact)
    if bias is not None:
        y = y + bias.to(dtype)
    return y.movedim(-2, time_dim).to(x.dtype)


def check_max_delay(max_delay: int | None) -> int | None:
    """Checks an upper bound of delays."""
    if max_delay is None:
        return None
    most = arguments.integer("max_delay", max_delay)
    if not 1 <= most <= arguments.LARGEST:
        raise ArgumentError("max_delay", f"from 1 to {arguments.LARGEST}", most)
    return most


def check_delays(delays: float | Tensor, max_delay: int | None) -> None:
    """Checks that delays are non-negative, finite and not above the bound. Of tensors, those on the CPU are read."""
    arguments.check_value("delays", delays)
    low = high = 0.0
    if not isinstance(delays, Tensor):
        low = high = float(delays)
    elif delays.is_cpu and delays.numel() and not arguments._is_traced(delays):
        least, largest = torch.aminmax(delays.detach())
        low, high = least.item(), largest.item()
    if not (0 <= low <= high and high <= (math.inf if max_delay is None else max_delay)) or math.isinf(high):
        wanted = "non-negative and finite" if max_delay is None else f"in [0, {max_delay}] (max_delay)"
        raise ArgumentError("delays", wanted, high if low >= 0 else low)


def check_width(width: float | None) -> None:
    """Checks the width of an interpolation."""
    if width is None:
        return
    if not arguments.is_number(width):
        raise ArgumentTypeError("width", "a positive number or None", type(width).__name__)
    if not 0 < width < math.inf:
        raise ArgumentError("width", "a positive number or None", width)


def _check_weights(x: Tensor, weight: Tensor, delays: float | Tensor, bias: Tensor | None) -> None:
    for name, tensor, dimensions in (("weight", weight, 2), ("bias", bias, 1)):
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise ArgumentTypeError(name, "a torch.Tensor", type(tensor).__name__)
        if tensor.dtype != x.dtype:
            raise ArgumentTypeError(name, f"of the dtype of x, {x.dtype}", tensor.dtype)
        if tensor.dim() != dimensions or tensor.shape[0] != weight.shape[0]:
            wanted = "of shape (N_out, N_in)" if name == "weight" else f"of shape ({weight.shape[0]},)"
            raise ArgumentError(name, wanted, tuple(tensor.shape))
    if weight.shape[1] != x.shape[-1]:
        raise ArgumentError("x", f"of shape (..., {weight.shape[1]})", tuple(x.shape))
    if isinstance(delays, Tensor):
        try:
            delays.expand(weight.shape)
        except RuntimeError:
            expected = f"values that broadcast to the shape of weight, {tuple(weight.shape)}"
            raise ArgumentError("delays", expected, f"shape {tuple(delays.shape)}") from None


def continued(
    x: Tensor, state: State | None, max_delay: int, time_dim: int, compute: Callable[[Tensor], Tensor]
) -> tuple[Tensor, State]:
    """The result of `compute` for x after the inputs of the steps before it, and those before the next call.

    Args:
        x: a signal, time_dim counted from the front.
        state: the last max_delay inputs, time first, (max_delay, outer..., inner...), in the dtype that x is computed
            in; None: zeros.
        max_delay: how many steps an output may look back.
        compute: takes a signal and returns one with as many steps.
    """
    current = x.to(compute_dtype(x.dtype))
    if state is None:
        before = current.new_zeros((max_delay, *x.shape[:time_dim], *x.shape[time_dim + 1 :]))
    else:
        (before,) = state
    steps = x.shape[time_dim]
    whole = torch.cat([before.movedim(0, time_dim), current], time_dim)
    y = compute(whole).narrow(time_dim, max_delay, steps)
    after = whole.narrow(time_dim, steps, max_delay).movedim(time_dim, 0)
    return y.to(x.dtype), (kept(after),)


def _split_number(delay: float, max_delay: int | None, steps: int) -> tuple[int, float]:
    """The whole steps of a delay, no more than there are, and what is left."""
    if delay >= steps and max_delay is None:
        return steps, 0.0
    whole = math.floor(delay) if max_delay is None else min(math.floor(delay), max_delay - 1)
    return whole, delay - whole


def _split(delays: Tensor, most: int, *, open_end: bool = False) -> tuple[Tensor, Tensor]:
    """Delays, between 0 and `most`, as whole steps, int64, and what is left, with the gradient of the delays.

    What is left of `most` itself is 1, unless the end is open: then 0.
    """
    with torch.no_grad():
        inside = delays.clamp(0, most)
        wholes = inside.floor().clamp(max=most if open_end else most - 1)
        base = wholes + (delays - inside)
    return torch.nan_to_num(wholes, nan=0.0).to(torch.int64), delays - base


def _lag(x: Tensor, steps: int, time_dim: int) -> Tensor:
    """x[t - steps], and zeros before."""
    length = x.shape[time_dim]
    steps = min(steps, length)
    if steps == 0:
        return x
    shape = list(x.shape)
    shape[time_dim] = steps
    return torch.cat([x.new_zeros(shape), x.narrow(time_dim, 0, length - steps)], time_dim)


def _interpolated(x: Tensor, part: float | Tensor, time_dim: int) -> Tensor:
    """(1 - part) x[t] + part x[t-1]."""
    if isinstance(part, float) and part == 0:
        return x.clone()
    return (1 - part) * x + part * _lag(x, 1, time_dim)


class _Shifted(torch.autograd.Function):
    """x[t - n_i] of x with shape (outer, time, inner), and zeros outside; n, int64, shape (inner,) or (1,).

    The adjoint of a shift is the shift back: a gather, where autograd's would be a scatter.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, n: Tensor) -> Tensor:
        steps = x.shape[1]
        if x.numel() == 0:
            return x.clone()
        source = torch.arange(steps, device=x.device)[:, None] - n
        inside = (source >= 0) & (source < steps)
        return torch.where(inside, x.gather(1, source.clamp_(0, steps - 1).expand(x.shape)), 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (n,) = ctx.saved_tensors
        shifted: Tensor = _Shifted.apply(grad.contiguous(), -n)  # type: ignore[no-untyped-call]
        return shifted, None


def _taps(weight: Tensor, delays: Tensor, max_delay: int, width: float | None) -> Tensor:
    """The weights of the steps 0 to max_delay back, shape (max_delay + 1, N_out, N_in)."""
    if width is not None:
        steps = torch.arange(max_delay + 1, dtype=weight.dtype, device=weight.device).view(-1, 1, 1)
        density = torch.softmax(-0.5 * ((steps - delays) / width) ** 2, 0)  # exp of it, divided by the sum
        return weight * density
    wholes, parts = _split(delays, max_delay)
    index = wholes.expand(weight.shape)[None]
    taps = weight.new_zeros((max_delay + 1, *weight.shape))
    taps = taps.scatter(0, index, (weight * (1 - parts))[None])
    return taps.scatter(0, index + 1, (weight * parts)[None])


def _sum_of_taps(x: Tensor, taps: Tensor, exact: bool) -> Tensor:
    """The sum over k of taps[k] x[t-k], with time as the last axis but one; the nearest steps are added first."""
    steps = x.shape[-2]
    nearest, *others = taps[: max(steps, 1)].unbind()  # each tap a view, whose gradient is one of a stack
    y = linear(x, nearest, exact=exact)
    for k, tap in enumerate(others, 1):
        y = y + F.pad(linear(x, tap, exact=exact)[..., : steps - k, :], (0, 0, k, 0))
    return y
