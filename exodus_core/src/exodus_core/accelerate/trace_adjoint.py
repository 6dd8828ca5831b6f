"""First-order neurons whose backward rule the kernels do not have, over the whole time axis at once.

The forward pass is that of `exodus_core.lif`. Its backward pass is one linear recurrence whose coefficients are known
from the membrane trace::

    lam[t] = f'(u[t]) g[t] + h[t] + a[t] lam[t+1]

f' is any elementwise function, and a[t] follows from the reset: alpha (1 - s) for one that sets the membrane to zero
and lets no gradient through the spike, and so on. The coefficients are computed for all steps at once, and the
recurrence is one call of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exodus_core import functional
from exodus_core.gradients import lif_gradient
from exodus_core.once_differentiable import once_differentiable
from exodus_core.surrogate import Boxcar

Derivative = Callable[[Tensor, Tensor], Tensor]

# f' = 1 wherever a membrane of float32 can be; the powers of two multiply without rounding.
_ONE = Boxcar(slope=2.0**-60, scale=2.0**60)
_NEVER = 2.0**40


def linear_recurrence(factors: Tensor, values: Tensor, time_dim: int) -> Tensor:
    """lam[t] = values[t] + factors[t] lam[t+1], backward in time, with the shape and dtype of both.

    It is the gradient of a neuron that is reset to zero, alpha (1 - s - u f'), on a membrane of 1 - factors with
    alpha = f' = 1, and without spikes.
    """
    found = lif_gradient(
        (1 - factors).contiguous(),
        values.contiguous(),
        1.0,
        threshold=_NEVER,
        reset="zero",
        surrogate=_ONE,
        time_dim=time_dim,
    )
    return found.input


def elementwise_derivative(function: Callable[[Tensor], Tensor]) -> Derivative:
    """f' of a library's elementwise spike function, as autograd finds it."""

    def derivative(membrane: Tensor, threshold: Tensor) -> Tensor:
        with torch.enable_grad():
            x = (membrane - threshold).detach().requires_grad_()
            (found,) = torch.autograd.grad(function(x).sum(), x)
        return found

    return derivative


def before(trace: Tensor, initial: Tensor, time_dim: int) -> Tensor:
    """A trace one step earlier: initial, then all of it but the last step."""
    first = initial.to(trace.dtype).expand_as(trace.select(time_dim, 0)).unsqueeze(time_dim)
    return torch.cat([first, trace.narrow(time_dim, 0, trace.shape[time_dim] - 1)], time_dim)


def _after(trace: Tensor, time_dim: int) -> Tensor:
    """A trace one step later, with zeros at the last."""
    last = torch.zeros_like(trace.narrow(time_dim, 0, 1))
    return torch.cat([trace.narrow(time_dim, 1, trace.shape[time_dim] - 1), last], time_dim)


@dataclass(frozen=True)
class TraceRule:
    """The constants of such neurons.

    Args:
        reset: "subtract", "zero" or "none".
        decay_reset: the reset comes before the decay.
        detach_reset: no gradient through the spikes of the reset.
        derivative: f' of the membrane and the threshold, elementwise.
        max_spikes: most spikes in one step.
        fires_from: the threshold that membranes are compared with, None for the threshold.
        floor: lower bound of the membrane after the reset, or None. The gradient through the spikes of a step passes
            it, that through the membrane does not.
        time_dim: the axis of time.
    """

    reset: str
    decay_reset: bool
    detach_reset: bool
    derivative: Derivative
    max_spikes: int
    fires_from: float | Tensor | None
    floor: Tensor | None
    time_dim: int


class TraceLif(torch.autograd.Function):
    """Spikes and membrane of first-order neurons with a `TraceRule`; parameters are tensors."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        alpha: Tensor,
        threshold: Tensor,
        reset_by: Tensor,
        initial_membrane: Tensor,
        initial_spikes: Tensor,
        rule: TraceRule,
    ) -> tuple[Tensor, Tensor]:
        # Several spikes that set the membrane to zero: only if there was one matters to the state.
        counted = rule.reset == "zero" and rule.max_spikes > 1
        fires_from = threshold if rule.fires_from is None else rule.fires_from
        spikes, membrane = functional.lif(
            x,
            alpha,
            threshold=fires_from,
            reset=rule.reset,
            reset_by=reset_by,
            decay_reset=rule.decay_reset,
            initial_membrane=initial_membrane,
            initial_spikes=initial_spikes,
            min_membrane=rule.floor,
            max_spikes=1 if counted else rule.max_spikes,
            time_dim=rule.time_dim,
        )
        if rule.floor is not None:  # the membrane that the spikes were taken from is not yet clipped
            held = before(_reset(membrane, spikes, reset_by, rule), initial_membrane, rule.time_dim)
            membrane = alpha * held + x
        if counted:
            spikes = spikes * torch.floor(membrane / threshold).clamp(max=rule.max_spikes)
        ctx.save_for_backward(membrane, spikes, alpha, threshold, reset_by, initial_membrane, initial_spikes)
        ctx.rule = rule
        ctx.set_materialize_grads(False)
        return spikes, membrane

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor | None, grad_membrane: Tensor | None) -> tuple[Tensor | None, ...]:
        u, spikes, alpha, threshold, reset_by, u0, s0 = ctx.saved_tensors
        rule: TraceRule = ctx.rule
        time_dim = rule.time_dim
        slope = rule.derivative(u, threshold)
        held = _reset(u, spikes, reset_by, rule)
        kept = 1.0 if rule.floor is None else (held > rule.floor).to(u.dtype)
        fired = spikes.clamp(max=1)
        through = _through_spikes(u, alpha, reset_by, rule)
        if rule.reset == "zero":
            factors = alpha * (1 - fired) * kept
        else:
            factors = (alpha * kept).expand_as(u)
        if through is not None:
            factors = factors + slope * through * kept
        values = torch.zeros_like(u) if grad_spikes is None else slope * grad_spikes
        if grad_membrane is not None:
            values = values + grad_membrane
        lam = linear_recurrence(factors, values, time_dim)
        found: list[Tensor | None] = [lam, None, None, None, None, None, None]
        if ctx.needs_input_grad[1]:
            decayed = before(_decayed(u, held, rule, kept), _decayed(u0, _reset(u0, s0, reset_by, rule), rule), time_dim)
            found[1] = (lam * decayed).sum_to_size(alpha.shape)
        later = _after(lam, time_dim) * kept
        if ctx.needs_input_grad[2]:
            on_spikes = torch.zeros_like(u) if grad_spikes is None else grad_spikes
            if through is not None:
                on_spikes = on_spikes + through * later
            found[2] = (-slope * on_spikes).sum_to_size(threshold.shape)
        if ctx.needs_input_grad[3] and rule.reset == "subtract":
            reach = alpha if rule.decay_reset else torch.ones_like(alpha)
            first = s0 * lam.select(time_dim, 0)
            found[3] = -(reach * spikes * later).sum_to_size(reset_by.shape) - (reach * first).sum_to_size(reset_by.shape)
        if ctx.needs_input_grad[4]:
            grad = alpha * lam.select(time_dim, 0)
            found[4] = (grad * (1 - s0) if rule.reset == "zero" else grad).sum_to_size(u0.shape)
        return tuple(found)


def _reset(u: Tensor, spikes: Tensor, reset_by: Tensor, rule: TraceRule) -> Tensor:
    """The membrane after the reset; before the lower bound."""
    if rule.reset == "subtract":
        return u - reset_by * spikes
    return u * (1 - spikes.clamp(max=1)) if rule.reset == "zero" else u


def _decayed(u: Tensor, held: Tensor, rule: TraceRule, kept: float | Tensor = 1.0) -> Tensor:
    """What alpha multiplies."""
    if rule.floor is not None and isinstance(kept, Tensor):
        return torch.where(kept > 0, held, rule.floor)
    return u if rule.reset == "subtract" and not rule.decay_reset else held


def _through_spikes(u: Tensor, alpha: Tensor, reset_by: Tensor, rule: TraceRule) -> Tensor | None:
    """The derivative of the next membrane with respect to the spikes, or None where the reset lets none through."""
    if rule.detach_reset or rule.reset == "none":
        return None
    if rule.reset == "zero":
        return -alpha * u
    return -alpha * reset_by if rule.decay_reset else -reset_by
