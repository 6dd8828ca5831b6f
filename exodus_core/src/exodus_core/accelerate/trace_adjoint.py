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
from exodus_core.surrogate import Boxcar, Surrogate

Derivative = Callable[[Tensor, Tensor], Tensor]

# f' = 1 wherever a membrane of float32 can be; the powers of two multiply without rounding.
_ONE = Boxcar(slope=2.0**-60, scale=2.0**60)
_NEVER = 2.0**40


def linear_recurrence(lost: Tensor, values: Tensor, time_dim: int) -> Tensor:
    """lam[t] = values[t] + (1 - lost[t]) lam[t+1], backward in time, with the shape and dtype of both.

    It is the gradient of a neuron that is reset to zero, alpha (1 - s - u f'), on the membrane `lost` with
    alpha = f' = 1, and without spikes.
    """
    found = lif_gradient(lost, values, 1.0, threshold=_NEVER, reset="zero", surrogate=_ONE, time_dim=time_dim)
    return found.input


def surrogate_derivative(surrogate: Surrogate) -> Derivative:
    """f' of a surrogate of the kernels, by one of them: the gradient of a neuron that forgets its membrane."""

    def derivative(membrane: Tensor, threshold: Tensor) -> Tensor:
        spikes = torch.ones_like(membrane)
        found = lif_gradient(
            membrane, spikes, 0.0, threshold=threshold, reset="none", surrogate=surrogate, wrt=(), time_dim=0
        )
        return found.input

    return derivative


def elementwise_derivative(function: Callable[[Tensor], Tensor]) -> Derivative:
    """f' of a library's elementwise spike function, as autograd finds it."""

    def derivative(membrane: Tensor, threshold: Tensor) -> Tensor:
        with torch.enable_grad():
            x = (membrane - threshold).detach().requires_grad_()
            (found,) = torch.autograd.grad(function(x).sum(), x)
        return found

    return derivative


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
        floor: lower bound of the membrane after the reset, or None, as `bound_after_reset` of `exodus_core.lif`.
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
            bound_after_reset=rule.floor is not None,
            max_spikes=1 if counted else rule.max_spikes,
            time_dim=rule.time_dim,
        )
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
        slope = rule.derivative(u, threshold).to(u.dtype)
        held = _reset(u, spikes, reset_by, rule)
        clipped = None if rule.floor is None else held <= rule.floor
        lost = _lost(u, spikes, slope, alpha, reset_by, rule)
        if clipped is not None:
            lost.masked_fill_(clipped, 1.0)
        if grad_spikes is None:
            values = torch.zeros_like(u) if grad_membrane is None else grad_membrane.contiguous()
        else:
            values = slope * grad_spikes
            if grad_membrane is not None:
                values += grad_membrane
        lam = linear_recurrence(lost, values, time_dim)
        found: list[Tensor | None] = [lam, None, None, None, None, None, None]
        steps = u.shape[time_dim]
        first, later = lam.select(time_dim, 0), lam.narrow(time_dim, 1, steps - 1)
        if ctx.needs_input_grad[1]:
            decayed = u if rule.reset == "subtract" and not rule.decay_reset else held
            if rule.floor is not None and clipped is not None:
                decayed = torch.where(clipped, rule.floor, decayed)
            start = u0 if rule.reset == "subtract" and not rule.decay_reset else _reset(u0, s0, reset_by, rule)
            along = (later * decayed.narrow(time_dim, 0, steps - 1)).sum(time_dim)
            found[1] = (along + first * start).sum_to_size(alpha.shape)
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            # What the next step passes back to the membrane after the reset.
            back = torch.zeros_like(u)
            back.narrow(time_dim, 0, steps - 1).copy_(later)
            if clipped is not None:
                back.masked_fill_(clipped, 0.0)
            found[2:4] = _threshold_gradients(ctx, grad_spikes, slope, back, first)
        if ctx.needs_input_grad[4]:
            grad = alpha * first
            found[4] = (grad * (1 - s0) if rule.reset == "zero" else grad).sum_to_size(u0.shape)
        return tuple(found)


def _threshold_gradients(
    ctx: Any, grad_spikes: Tensor | None, slope: Tensor, back: Tensor, first: Tensor
) -> list[Tensor | None]:
    """The gradients of the threshold and of what a spike subtracts."""
    u, spikes, alpha, threshold, reset_by, _, s0 = ctx.saved_tensors
    rule: TraceRule = ctx.rule
    found: list[Tensor | None] = [None, None]
    if ctx.needs_input_grad[2]:
        on_spikes = torch.zeros_like(u) if grad_spikes is None else grad_spikes
        through = _through_spikes(u, alpha, reset_by, rule)
        if through is not None:
            on_spikes = on_spikes + through * back
        found[0] = (-slope * on_spikes).sum_to_size(threshold.shape)
    if ctx.needs_input_grad[3] and rule.reset == "subtract":
        reach = alpha if rule.decay_reset else torch.ones_like(alpha)
        found[1] = -(reach * spikes * back).sum_to_size(reset_by.shape)
        found[1] -= (reach * s0 * first).sum_to_size(reset_by.shape)
    return found


def _lost(u: Tensor, spikes: Tensor, slope: Tensor, alpha: Tensor, reset_by: Tensor, rule: TraceRule) -> Tensor:
    """1 - a, a being the derivative of the next membrane with respect to this one, in memory of its own."""
    through = _through_spikes(u, alpha, reset_by, rule)
    if rule.reset == "zero":
        lost = 1 - alpha * (1 - spikes.clamp(max=1))
        return lost if through is None else lost.addcmul_(slope, through, value=-1)
    if through is None:
        return (1 - alpha).expand_as(u).clone()
    return torch.addcmul(1 - alpha, slope, through, value=-1)


def _reset(u: Tensor, spikes: Tensor, reset_by: Tensor, rule: TraceRule) -> Tensor:
    """The membrane after the reset; before the lower bound."""
    if rule.reset == "subtract":
        return torch.addcmul(u, spikes, reset_by, value=-1)
    return u * (1 - spikes.clamp(max=1)) if rule.reset == "zero" else u


def _through_spikes(u: Tensor, alpha: Tensor, reset_by: Tensor, rule: TraceRule) -> Tensor | None:
    """The derivative of the next membrane with respect to the spikes, or None where the reset lets none through."""
    if rule.detach_reset or rule.reset == "none":
        return None
    if rule.reset == "zero":
        return -alpha * u
    return -alpha * reset_by if rule.decay_reset else -reset_by
