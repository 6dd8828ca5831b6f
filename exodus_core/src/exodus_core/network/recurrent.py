"""LIF and IF neurons with recurrent connections: x[t] + W s[t-1] instead of x[t], exact through time.

Forward and backward call the operators of one step in a loop, with W between: autograd through such a loop costs
several times as much in bookkeeping. The plain loop, which method "bptt" is, is the definition.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Unpack

import torch
from torch import Tensor

from exodus_core import arguments, functional, ops
from exodus_core.arguments import LifSettings, NeuronOptions
from exodus_core.autograd import parameter_gradients
from exodus_core.once_differentiable import once_differentiable
from exodus_core.ops import INITIAL_MEMBRANE, INITIAL_SPIKES

# Steps that are split into views at a time: of a narrow layer, the views of all steps outweigh the data they show.
_VIEWED_STEPS = 256


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context without autocast: the state of a neuron is not to be rounded from step to step."""
    # torch.compile traces a backward pass together with the forward pass, within this context, and runs it outside.
    if device.type != "meta" and (torch.compiler.is_compiling() or torch.is_autocast_enabled(device.type)):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class _RecurrentLif(torch.autograd.Function):
    """Spikes, shape (time, batch, neurons), of x, shape (time, batch, neurons), strided as it comes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        alphas: Tensor | None,
        thresholds: Tensor | None,
        resets_by: Tensor | None,
        min_membranes: Tensor | None,
        settings: LifSettings,
    ) -> Tensor:
        resets_by = thresholds if settings.tied else resets_by
        parameters = (alphas, thresholds, resets_by, min_membranes)
        transposed = weight.t()
        # Written step by step, so that the memory of a step serves the next while the cache still has it.
        fired, membranes = x.new_empty(x.shape), x.new_empty(x.shape)
        s = u = None
        for parts in zip(
            x.split(_VIEWED_STEPS), fired.split(_VIEWED_STEPS), membranes.split(_VIEWED_STEPS), strict=True
        ):
            for x_t, fired_t, membrane_t in zip(*(part.unbind() for part in parts), strict=True):
                current = x_t.contiguous() if s is None else torch.addmm(x_t, s, transposed)
                # The operators' time is a dimension of length 1.
                s, u = ops.lif_forward(current[:, None], *settings.neuron, *parameters, u, s, settings.reset, 1)
                s, u = s[:, 0], u[:, 0]
                fired_t.copy_(s)
                membrane_t.copy_(u)
        ctx.save_for_backward(fired, membranes, weight, *parameters)
        ctx.settings = settings
        return fired

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor) -> tuple[Tensor | None, ...]:
        with _without_autocast(grad_spikes.device):
            return _gradients(ctx, grad_spikes)


def _gradients(ctx: Any, grad_spikes: Tensor) -> tuple[Tensor | None, ...]:
    settings: LifSettings = ctx.settings
    spikes, membranes, weight, *parameters = ctx.saved_tensors
    wanted = ctx.needs_input_grad[2:6]
    grad_x = torch.empty_like(spikes)
    total: Tensor | None = None
    delta: Tensor | None = None
    lanes: Tensor | None = None
    for t in reversed(range(spikes.shape[0])):
        grad_s, grad_u = grad_spikes[t], None
        if delta is not None and lanes is not None:
            # Step t + 1 saw the spikes of this one through W and the reset, and its membrane through the decay.
            grad_s = torch.addmm(grad_s + lanes[INITIAL_SPIKES], delta, weight)
            grad_u = lanes[INITIAL_MEMBRANE][:, None]
        before = (membranes[t - 1], spikes[t - 1]) if t else (None, None)
        found, lanes = ops.lif_backward(
            membranes[t][:, None],
            grad_s.contiguous()[:, None],
            grad_u,
            *settings.neuron,
            *parameters,
            *before,
            settings.reset,
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
    gradients: list[Tensor | None] = [None] * 4
    if total is not None:
        gradients = parameter_gradients(total, parameters, wanted, settings.tied)
    return grad_x, grad_weight, *gradients, None


def _plain_loop(x: Tensor, weight: Tensor, alpha: float | Tensor, **options: Unpack[NeuronOptions]) -> Tensor:
    """The definition: steps of `exodus_core.lif` that pass spikes and membrane on, differentiated by autograd."""
    spikes: list[Tensor] = []
    s = u = None
    for x_t in x.unbind(1):
        current = x_t if s is None else x_t + (s.flatten(1) @ weight.t()).view_as(x_t)
        found, membrane = functional.lif(
            current[:, None], alpha, initial_membrane=u, initial_spikes=s, time_dim=1, **options
        )
        s, u = found[:, 0], membrane[:, 0]
        spikes.append(s)
    return torch.stack(spikes, 1)


def recurrent_lif(x: Tensor, weight: Tensor, alpha: float | Tensor, **options: Unpack[NeuronOptions]) -> Tensor:
    """Spikes of LIF neurons whose input is x[t] + W s[t-1], differentiable in every float tensor argument.

    Args:
        x: input current, shape (batch, time, *neurons), a float dtype; float16 and bfloat16 are computed in float32,
            also under autocast.
        weight: W, shape (n, n), n the number of neurons; row i is what neuron i receives.

    The other arguments are those of `exodus_core.lif`, without initial state and time_dim; "slayer" drops the reset,
    not W, from the gradient.

    Returns:
        spikes, with the shape and dtype of x.
    """
    dtype = ops.compute_dtype(x.dtype)
    with _without_autocast(x.device):
        return _exact(x.to(dtype), weight.to(dtype), alpha, options).to(x.dtype)


def _exact(x: Tensor, weight: Tensor, alpha: float | Tensor, options: NeuronOptions) -> Tensor:
    if options.get("method") == "bptt":
        return _plain_loop(x, weight, alpha, **options)
    settings, tensors = arguments.lif_arguments(x, alpha, **options)
    alphas, thresholds, resets_by, min_membranes, _, _ = tensors
    spikes: Tensor = _RecurrentLif.apply(  # type: ignore[no-untyped-call]
        x.flatten(2).transpose(0, 1),
        weight,
        alphas,
        thresholds,
        None if settings.tied else resets_by,
        min_membranes,
        settings,
    )
    return spikes.transpose(0, 1).reshape(x.shape)
