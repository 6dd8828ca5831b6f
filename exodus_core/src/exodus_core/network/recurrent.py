"""Neurons with recurrent connections: x[t] + W s[t-1] instead of x[t], exact through time.

Forward and backward call the operators of one step in a loop, with W between: autograd through such a loop costs
several times as much in bookkeeping. The plain loop, which method "bptt" is, is the definition.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Unpack, cast

import torch
from torch import Tensor

from exodus_core import arguments, ops
from exodus_core.arguments import LifSettings, NeuronOptions
from exodus_core.autograd import parameter_gradients
from exodus_core.coupled import (
    CoupledOptions,
    CoupledSettings,
    coupled_arguments,
    parameter_rows_gradient,
    with_defaults,
)
from exodus_core.once_differentiable import once_differentiable
from exodus_core.ops import INITIAL_MEMBRANE, INITIAL_SPIKES
from exodus_core.pieces.carried import State
from exodus_core.pieces.continuation import continued_lif

# Steps that are split into views at a time: of a narrow layer, the views of all steps outweigh the data they show.
_VIEWED_STEPS = 256


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context without autocast: the state of a neuron is not to be rounded from step to step."""
    # torch.compile traces a backward pass together with the forward pass, within this context, and runs it outside.
    if device.type != "meta" and (torch.compiler.is_compiling() or torch.is_autocast_enabled(device.type)):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class _RecurrentLif(torch.autograd.Function):
    """Spikes, shape (time, batch, neurons), and the last membrane, of x, shape (time, batch, neurons), as strided.

    The membrane and the spikes before the first step have the shape (batch, neurons); None: at rest.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        alphas: Tensor | None,
        thresholds: Tensor | None,
        resets_by: Tensor | None,
        min_membranes: Tensor | None,
        initial_membrane: Tensor | None,
        initial_spikes: Tensor | None,
        settings: LifSettings,
    ) -> tuple[Tensor, Tensor]:
        resets_by = thresholds if settings.tied else resets_by
        parameters = (alphas, thresholds, resets_by, min_membranes)
        transposed = weight.t()
        # Written step by step, so that the memory of a step serves the next while the cache still has it.
        fired, membranes = x.new_empty(x.shape), x.new_empty(x.shape)
        u, s = initial_membrane, initial_spikes
        for parts in zip(
            x.split(_VIEWED_STEPS), fired.split(_VIEWED_STEPS), membranes.split(_VIEWED_STEPS), strict=True
        ):
            for x_t, fired_t, membrane_t in zip(*(part.unbind() for part in parts), strict=True):
                current = x_t.contiguous() if s is None else torch.addmm(x_t, s, transposed)
                # The operators' time is a dimension of length 1.
                s, u = ops.lif_forward(current[:, None], *settings.neuron, *parameters, u, s, *settings.rule, 1)
                s, u = s[:, 0], u[:, 0]
                fired_t.copy_(s)
                membrane_t.copy_(u)
        ctx.save_for_backward(fired, membranes, weight, initial_membrane, initial_spikes, *parameters)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        return fired, membranes[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor | None, grad_last: Tensor | None) -> tuple[Tensor | None, ...]:
        weight = ctx.saved_tensors[2]
        with _without_autocast(weight.device):
            return _gradients(ctx, grad_spikes, grad_last)


def _gradients(ctx: Any, grad_spikes: Tensor | None, grad_last: Tensor | None) -> tuple[Tensor | None, ...]:
    settings: LifSettings = ctx.settings
    spikes, membranes, weight, initial_membrane, initial_spikes, *parameters = ctx.saved_tensors
    if grad_spikes is None:
        grad_spikes = torch.zeros_like(spikes)
    wanted = ctx.needs_input_grad[2:6]
    grad_x = torch.empty_like(spikes)
    total: Tensor | None = None
    delta: Tensor | None = None
    lanes: Tensor | None = None
    for t in reversed(range(spikes.shape[0])):
        grad_s, grad_u = grad_spikes[t], None if grad_last is None else grad_last[:, None].contiguous()
        if delta is not None and lanes is not None:
            # Step t + 1 saw the spikes of this one through W and the reset, and its membrane through the decay.
            grad_s = torch.addmm(grad_s + lanes[INITIAL_SPIKES], delta, weight)
            grad_u = lanes[INITIAL_MEMBRANE][:, None]
        before = (membranes[t - 1], spikes[t - 1]) if t else (initial_membrane, initial_spikes)
        found, lanes = ops.lif_backward(
            membranes[t][:, None],
            grad_s.contiguous()[:, None],
            grad_u,
            *settings.neuron,
            *parameters,
            *before,
            *settings.rule,
            settings.surrogate,
            settings.slope,
            settings.scale,
            settings.method,
            True,
            1,
        )
        delta = found[:, 0]
        grad_x[t].copy_(delta)
        if any(wanted):
            total = lanes.double() if total is None else total.add_(lanes)  # many small ones: float32 loses them
    grad_weight = None
    if ctx.needs_input_grad[1]:
        n = weight.shape[0]
        grad_weight = grad_x[1:].reshape(-1, n).t() @ spikes[:-1].reshape(-1, n)
        if initial_spikes is not None:
            grad_weight += grad_x[0].t() @ initial_spikes
    grad_initial: list[Tensor | None] = [None] * 2
    if lanes is not None and delta is not None and initial_membrane is not None:
        grad_initial = [lanes[INITIAL_MEMBRANE], torch.addmm(lanes[INITIAL_SPIKES], delta, weight)]
    gradients: list[Tensor | None] = [None] * 4
    if total is not None:
        gradients = parameter_gradients(total, parameters, wanted, settings.tied)
    return grad_x, grad_weight, *gradients, *grad_initial, None


class _RecurrentCoupled(torch.autograd.Function):
    """Spikes, shape (time, batch, neurons), and the last state, of neurons of `coupled`, as `_RecurrentLif`.

    Kept for the backward pass are the states of all steps, (time + 1, COUPLED_STATES, batch, neurons).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        parameters: Tensor | None,
        initial: Tensor | None,
        settings: CoupledSettings,
    ) -> tuple[Tensor, Tensor]:
        transposed = weight.t()
        shape = (len(ops.COUPLED_STATES), *x.shape[1:])
        states = x.new_empty((len(x) + 1, *shape))
        states[0] = 0.0 if initial is None else initial.view(shape)
        for t, x_t in enumerate(x.unbind()):
            before = states[t]
            current = x_t.contiguous() if t == 0 and initial is None else torch.addmm(x_t, before[_SPIKES], transposed)
            last = ops.coupled_forward(
                current[:, None],
                settings.numbers,
                parameters,
                before,
                settings.max_spikes,
                settings.refractory,
                settings.reset,
                settings.couplings,
                0,
                1,
            )[-1]
            states[t + 1] = last.view(shape)
        ctx.save_for_backward(states, weight, parameters, initial)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        return states[1:, _SPIKES].clone(), states[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor | None, grad_last: Tensor | None) -> tuple[Tensor | None, ...]:
        with _without_autocast(ctx.saved_tensors[1].device):
            return _coupled_gradients(ctx, grad_spikes, grad_last)


_MEMBRANE, _SPIKES, _CURRENT, _ADAPTATION, _REFRACTORY = range(len(ops.COUPLED_STATES))


def _coupled_gradients(ctx: Any, grad_spikes: Tensor | None, grad_last: Tensor | None) -> tuple[Tensor | None, ...]:
    settings: CoupledSettings = ctx.settings
    states, weight, parameters, initial = ctx.saved_tensors
    _, wants_weight, wants_parameters, wants_initial, _ = ctx.needs_input_grad
    spikes = states[1:, _SPIKES]
    shape = states.shape[1:]
    grad_x = spikes.new_empty(spikes.shape)
    held = (states[:, _REFRACTORY] > 0).to(states.dtype)
    later = None if grad_last is None else grad_last.contiguous()  # dL/d(state after step t)
    delta: Tensor | None = None
    total: Tensor | None = None
    for t in reversed(range(len(spikes))):
        grad_s = torch.zeros_like(spikes[t]) if grad_spikes is None else grad_spikes[t]
        if later is not None:
            grad_s = grad_s + later[_SPIKES]
        if delta is not None:  # step t + 1 saw the spikes of this one through W
            grad_s = torch.addmm(grad_s, delta, weight)
        found, lanes = ops.coupled_backward(
            states[t + 1, _MEMBRANE][:, None],
            states[t + 1, _CURRENT][:, None],
            states[t + 1, _ADAPTATION][:, None],
            held[t][:, None],
            grad_s.contiguous()[:, None],
            None if later is None else later[_MEMBRANE][:, None].contiguous(),
            later,
            settings.numbers,
            parameters,
            states[t],
            settings.max_spikes,
            settings.refractory,
            settings.reset,
            settings.couplings,
            0,
            settings.surrogate,
            settings.slope,
            settings.scale,
            settings.method,
            True,
            1,
        )
        delta = found[:, 0]
        grad_x[t] = delta
        later = lanes[: shape[0]].view(shape)
        if wants_parameters:
            each = lanes[shape[0] :]
            total = each.double() if total is None else total.add_(each)  # many small ones: float32 loses them
    grad_weight = grad_parameters = grad_initial = None
    if wants_weight:
        n = weight.shape[0]
        grad_weight = grad_x.reshape(-1, n).t() @ states[:-1, _SPIKES].reshape(-1, n)
    if wants_parameters and total is not None:
        grad_parameters = parameter_rows_gradient(total, parameters)
    if wants_initial and later is not None and delta is not None:
        grad_initial = later.clone()
        grad_initial[_SPIKES] = torch.addmm(later[_SPIKES], delta, weight)
        grad_initial = grad_initial.view(initial.shape)
    return grad_x, grad_weight, grad_parameters, grad_initial, None


def _plain_loop(
    x: Tensor, weight: Tensor, alpha: float | Tensor, state: State | None, **options: Unpack[CoupledOptions]
) -> tuple[Tensor, State]:
    """The definition: steps of neurons that pass their state on, differentiated by autograd."""
    spikes: list[Tensor] = []
    for x_t in x.unbind(1):
        current = x_t if state is None else x_t + (state[_SPIKES].flatten(1) @ weight.t()).view_as(x_t)
        (found, _), state = continued_lif(current[:, None], alpha, state, 1, options)
        spikes.append(found[:, 0])
    assert state is not None  # there is a step
    return torch.stack(spikes, 1), state


def continued_recurrent_lif(
    x: Tensor, weight: Tensor, alpha: float | Tensor, state: State | None, **options: Unpack[CoupledOptions]
) -> tuple[Tensor, State]:
    """Spikes of neurons whose input is x[t] + W s[t-1], and the state that they end in.

    Differentiable in every float tensor argument.

    Args:
        x: input current, shape (batch, time, *neurons), a float dtype; float16 and bfloat16 are computed in float32,
            also under autocast.
        weight: W, shape (n, n), n the number of neurons; row i is what neuron i receives.
        state: membrane and spikes of the step before, or all of ops.COUPLED_STATES if the neurons have more, shape
            (batch, *neurons), of the dtype that is computed in; None: at rest.

    The other arguments are those of `exodus_core.lif` or `exodus_core.alif`, without initial state and time_dim;
    "slayer" drops the reset, not W, from the gradient.

    Returns:
        spikes, with the shape and dtype of x, and the state after the last step.
    """
    dtype = ops.compute_dtype(x.dtype)
    with _without_autocast(x.device):
        spikes, after = _exact(x.to(dtype), weight.to(dtype), alpha, state, options)
        return spikes.to(x.dtype), after


def _exact(
    x: Tensor, weight: Tensor, alpha: float | Tensor, state: State | None, options: CoupledOptions
) -> tuple[Tensor, State]:
    if options.get("method") == "bptt":
        return _plain_loop(x, weight, alpha, state, **options)
    if arguments.is_coupled(**options):
        return _exact_coupled(x, weight, alpha, state, options)
    settings, tensors = arguments.lif_arguments(x, alpha, **cast("NeuronOptions", options))
    alphas, thresholds, resets_by, min_membranes, _, _ = tensors
    initial = (None, None) if state is None else [part.flatten(1) for part in state]
    spikes, last = _RecurrentLif.apply(  # type: ignore[no-untyped-call]
        x.flatten(2).transpose(0, 1),
        weight,
        alphas,
        thresholds,
        None if settings.tied else resets_by,
        min_membranes,
        *initial,
        settings,
    )
    after = last.view_as(x[:, -1]), spikes[-1].clone().view_as(x[:, -1])
    return spikes.transpose(0, 1).reshape(x.shape), after


def _exact_coupled(
    x: Tensor, weight: Tensor, alpha: float | Tensor, state: State | None, options: CoupledOptions
) -> tuple[Tensor, State]:
    given = with_defaults(options)
    if state is not None:
        given |= {f"initial_{name}": part for name, part in zip(ops.COUPLED_STATES, state, strict=True)}  # type: ignore[typeddict-item]
    settings, parameters, initial = coupled_arguments(x, alpha, given)
    spikes, last = _RecurrentCoupled.apply(x.flatten(2).transpose(0, 1), weight, parameters, initial, settings)  # type: ignore[no-untyped-call]
    after = tuple(part.view_as(x[:, -1]) for part in last.unbind())
    return spikes.transpose(0, 1).reshape(x.shape), after
