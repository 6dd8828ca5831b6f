"""The operators as autograd functions: they save tensors for the backward pass and hand its gradients on.

An autograd.Function around a plain operator costs half of what an autograd formula registered with the dispatcher does.
Besides the parameters, only the membrane is saved for the backward pass, which is an output already. The transforms of
torch.func can differentiate and map them: forward passes are apart from what they save, and the operators have rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad

from exodus_core import ops, vmap  # noqa: F401  (vmap registers the rules of torch.vmap)
from exodus_core.arguments import LifSettings, SrmSettings
from exodus_core.once_differentiable import once_differentiable
from exodus_core.ops import ALPHA, INITIAL_MEMBRANE, INITIAL_SPIKES, MIN_MEMBRANE, RESET_BY, THRESHOLD


def is_differentiated(*tensors: Tensor | None) -> bool:
    """True if a result of tensors is to be differentiated, backward or forward."""
    # Forward-mode differentiation needs no requires_grad. The plain operators would silently lose its tangents; the
    # autograd functions raise an error.
    # Within torch.vmap, a tensor does not show that a transform of torch.func around it differentiates it.
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class Operator(torch.autograd.Function):
    """A function with setup_context, for torch.func, that costs no more than one without outside of torch.func."""

    generate_vmap_rule = True

    @classmethod
    def apply(cls, *arguments):  # type: ignore[no-untyped-def]  # as that of torch
        """The outputs of `forward`; torch.compile calls that itself."""
        if torch._C._are_functorch_transforms_active():
            return super().apply(*arguments)  # type: ignore[no-untyped-call]
        # That of torch.autograd.Function binds the arguments to their names on each call: half the cost of a small one.
        return super(torch.autograd.Function, cls).apply(*unwrap_dead_wrappers(arguments))  # type: ignore[misc]


def per_parameter(lanes: Tensor, parameter: Tensor) -> Tensor:
    """Sums a lane gradient (outer, inner) to a parameter with one element or one for each inner index, in float64."""
    shared = parameter.numel() == 1
    total = lanes.sum(dtype=torch.float64) if shared else lanes.sum(0, dtype=torch.float64)
    return total.to(parameter.dtype).reshape(parameter.shape)


def threshold_gradient(lanes: Tensor, tied: bool) -> Tensor:
    """dL/dtheta of each lane, of `lane_gradients`; tied: a spike subtracts theta, so that dL/drho is part of it."""
    return lanes[THRESHOLD] + lanes[RESET_BY] if tied else lanes[THRESHOLD]


def parameter_gradients(
    lanes: Tensor, parameters: Sequence[Tensor | None], wanted: Sequence[bool], tied: bool
) -> list[Tensor | None]:
    """The gradients of alphas, thresholds, resets_by and min_membranes, of `lane_gradients`; None if not wanted."""
    gradients: list[Tensor | None] = [None] * 4
    for i, (row, parameter) in enumerate(zip((ALPHA, THRESHOLD, RESET_BY, MIN_MEMBRANE), parameters, strict=True)):
        if wanted[i] and parameter is not None:
            by_lane = threshold_gradient(lanes, tied) if row == THRESHOLD else lanes[row]
            gradients[i] = per_parameter(by_lane, parameter)
    return gradients


class Lif(Operator):
    """spikes, membrane of LIF and IF; the tensors are in the form of arguments.parameter and initial_state.

    If a spike subtracts the threshold (settings.tied), resets_by is ignored and may be None: torch.compile does not
    accept one tensor as two arguments.
    """

    @staticmethod
    def forward(
        x: Tensor,
        alphas: Tensor | None,
        thresholds: Tensor | None,
        resets_by: Tensor | None,
        min_membranes: Tensor | None,
        initial_membrane: Tensor | None,
        initial_spikes: Tensor | None,
        settings: LifSettings,
    ) -> tuple[Tensor, Tensor]:
        resets_by = thresholds if settings.tied else resets_by
        tensors = (alphas, thresholds, resets_by, min_membranes, initial_membrane, initial_spikes)
        if settings.steps:
            x = x.expand(*(settings.steps if d == settings.time_dim else size for d, size in enumerate(x.shape)))
        x = ops.contiguous_or_constant(x, settings.time_dim)
        return ops.lif_forward(x, *settings.neuron, *tensors, *settings.rule, settings.time_dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _save_lif(ctx, inputs, output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor | None, grad_membrane: Tensor | None) -> tuple[Tensor | None, ...]:
        return _lif_backward(ctx, grad_spikes, grad_membrane)


class LifWithLast(Operator):
    """As `Lif`, and copies of the last step of both, (membrane, spikes). There is a step.

    Autograd would spread the gradient of each to a whole trace of zeros, and add that to the other gradient.
    """

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        spikes, membrane = Lif.forward(*arguments)
        time_dim = arguments[-1].time_dim
        return spikes, membrane, membrane.select(time_dim, -1).clone(), spikes.select(time_dim, -1).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _save_lif(ctx, inputs, output[1])

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        grad_spikes: Tensor | None,
        grad_membrane: Tensor | None,
        grad_last_membrane: Tensor | None,
        grad_last_spikes: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        return _lif_backward(
            ctx, _with_last(ctx, grad_spikes, grad_last_spikes), _with_last(ctx, grad_membrane, grad_last_membrane)
        )


def _with_last(ctx: Any, grad: Tensor | None, grad_last: Tensor | None) -> Tensor | None:
    """The gradient of a trace with that of its last step in it."""
    if grad_last is None:
        return grad
    like = ctx.saved_tensors[0]
    total = torch.zeros_like(like) if grad is None else grad.clone(memory_format=torch.contiguous_format)
    total.select(ctx.settings.time_dim, -1).add_(grad_last)
    return total


class PackedLif(torch.autograd.Function):
    """The spikes of `Lif` as bits, (outer, time, bytes), behind a tensor of their shape without memory of its own.

    The gradient of the spikes flows through that tensor; its values mean nothing.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        alphas: Tensor | None,
        thresholds: Tensor | None,
        resets_by: Tensor | None,
        min_membranes: Tensor | None,
        settings: LifSettings,
    ) -> tuple[Tensor, Tensor]:
        resets_by = thresholds if settings.tied else resets_by
        tensors = (alphas, thresholds, resets_by, min_membranes, None, None)
        x = ops.contiguous_or_constant(x, settings.time_dim)
        bits, membrane = ops.lif_forward_packed(x, *settings.neuron[:4], *tensors, *settings.rule, settings.time_dim)
        graph = x.new_zeros(()).expand(x.shape)
        # The output ties the gradients to what they are gradients of: a second derivative is refused, not zero.
        ctx.save_for_backward(membrane, *tensors, graph)
        ctx.settings = settings
        ctx.mark_non_differentiable(bits)
        ctx.set_materialize_grads(False)
        return graph, bits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        grad_input, *parameters = _lif_backward(ctx, grad_spikes, None)
        return grad_input, *parameters[:4], None


def _save_lif(ctx: Any, inputs: tuple[Any, ...], membrane: Tensor) -> None:
    """Saves what `_lif_backward` needs, of the inputs of `Lif` and its membrane."""
    _, alphas, thresholds, resets_by, min_membranes, initial_membrane, initial_spikes, settings = inputs
    resets_by = thresholds if settings.tied else resets_by
    ctx.save_for_backward(membrane, alphas, thresholds, resets_by, min_membranes, initial_membrane, initial_spikes)
    ctx.settings = settings
    ctx.set_materialize_grads(False)


def _lif_backward(ctx: Any, grad_spikes: Tensor | None, grad_membrane: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients of the arguments of `Lif`, from the context of one of the three."""
    settings: LifSettings = ctx.settings
    membrane, *tensors = ctx.saved_tensors[:7]
    wanted = (*ctx.needs_input_grad[1:-1], False, False)[:6]
    grads = [grad for grad in (grad_spikes, grad_membrane) if grad is not None]
    # Only the kernels of the CPU add over time, in float32.
    summed = settings.steps > 0 and membrane.dtype == torch.float32 and all(map(ops.may_be_cached, grads))
    operator = ops.lif_backward_summed if summed else ops.lif_backward
    grad_input, lanes = operator(
        membrane,
        None if grad_spikes is None else ops.contiguous(grad_spikes),
        None if grad_membrane is None else ops.contiguous(grad_membrane),
        *settings.neuron,
        *tensors,
        *settings.rule,
        settings.surrogate,
        settings.slope,
        settings.scale,
        settings.method,
        any(wanted),
        settings.time_dim,
    )
    if summed:
        grad_input = grad_input.view_as(membrane.narrow(settings.time_dim, 0, 1))
    elif settings.steps:
        grad_input = grad_input.sum(settings.time_dim, keepdim=True)
    parameters = parameter_gradients(lanes, tensors[:4], wanted[:4], settings.tied)
    initial_membrane, initial_spikes = (
        lanes[row].view(tensors[i].shape) if wanted[i] else None
        for i, row in ((4, INITIAL_MEMBRANE), (5, INITIAL_SPIKES))
    )
    return grad_input, *parameters, initial_membrane, initial_spikes, None


class Srm(Operator):
    """spikes, membrane of an SRM neuron."""

    @staticmethod
    def forward(
        psp: Tensor, taps: Tensor | None, thresholds: Tensor | None, settings: SrmSettings
    ) -> tuple[Tensor, Tensor]:
        return ops.srm_forward(psp, taps, *settings.modes, settings.threshold, thresholds, settings.time_dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, taps, thresholds, settings = inputs
        spikes, membrane = output
        # The spikes are needed for the gradient of the taps alone.
        ctx.save_for_backward(membrane, taps, thresholds, spikes if ctx.needs_input_grad[1] else None)
        ctx.settings = settings
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor | None, grad_membrane: Tensor | None) -> tuple[Tensor | None, ...]:
        settings: SrmSettings = ctx.settings
        membrane, taps, thresholds, spikes = ctx.saved_tensors
        _, wants_taps, wants_threshold, _ = ctx.needs_input_grad
        # The gradient of the taps sums over delta: for that, delta must not have been rounded to a half type.
        dtype = ops.compute_dtype(membrane.dtype) if wants_taps else membrane.dtype
        delta, lanes = ops.srm_backward(
            membrane.to(dtype),
            None if grad_spikes is None else grad_spikes.to(dtype).contiguous(),
            None if grad_membrane is None else grad_membrane.to(dtype).contiguous(),
            taps,
            *settings.modes,
            settings.threshold,
            thresholds,
            settings.surrogate,
            settings.slope,
            settings.scale,
            settings.method,
            wants_threshold,
            settings.time_dim,
        )
        grad_taps = None
        if wants_taps:
            # u[n] = z[n] + sum_j nu[j] s[n - 1 - j]: the spikes reach the membrane one step late.
            grad_taps = ops.taps_gradient(delta, spikes.to(dtype), taps.numel(), 1, settings.time_dim)
        grad_threshold = per_parameter(lanes, thresholds) if wants_threshold else None
        return delta.to(membrane.dtype), grad_taps, grad_threshold, None


class Filter(Operator):
    """A causal filter, or its transpose (reverse); each is the other's backward pass."""

    @staticmethod
    def forward(
        x: Tensor,
        taps: Tensor | None,
        modes: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]],
        time_dim: int,
    ) -> Tensor:
        return ops.filter(x, taps, *modes, False, time_dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, taps, ctx.modes, ctx.time_dim = inputs
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, taps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, taps = ctx.saved_tensors
        grad = grad.contiguous()
        wants_x, wants_taps, _, _ = ctx.needs_input_grad
        grad_x = ops.filter(grad, taps, *ctx.modes, True, ctx.time_dim) if wants_x else None
        grad_taps = ops.taps_gradient(grad, x, taps.numel(), 0, ctx.time_dim) if wants_taps else None
        return grad_x, grad_taps, None, None
