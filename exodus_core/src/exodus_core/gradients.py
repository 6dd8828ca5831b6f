"""Gradients from a membrane trace that already exists: no forward pass, no autograd graph."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from exodus_core import arguments, ops, reference
from exodus_core.arguments import LifOptions
from exodus_core.autograd import threshold_gradient
from exodus_core.coupled_gradients import neurons_gradients
from exodus_core.kernels import Kernel
from exodus_core.surrogate import DEFAULT_SURROGATE, Surrogate
from exodus_core.trace_gradients import bptt_gradients, check_trace, recordable, wanted_names


class LifGradient(NamedTuple):
    """dL/d(argument) of `lif`; None if it was not asked for."""

    input: Tensor
    alpha: Tensor | None = None
    threshold: Tensor | None = None
    reset_by: Tensor | None = None
    initial_membrane: Tensor | None = None


class LifValueGradient(NamedTuple):
    """The same with reset "value", where spikes subtract nothing."""

    input: Tensor
    alpha: Tensor | None = None
    threshold: Tensor | None = None
    reset_to: Tensor | None = None
    initial_membrane: Tensor | None = None


class SrmGradient(NamedTuple):
    """dL/d(argument) of `srm`."""

    psp: Tensor


def _sum_to(lanes: Tensor, parameter: float | Tensor | None) -> Tensor:
    """Sums a value per lane, (outer..., inner...), to the shape of the parameter, in float64; 0-d for a number."""
    if not isinstance(parameter, Tensor):
        return lanes.sum(dtype=torch.float64).to(lanes.dtype)
    if parameter.numel() == 1:
        return lanes.sum(dtype=torch.float64).reshape(parameter.shape).to(parameter.dtype)
    return lanes.double().sum_to_size(parameter.shape).to(parameter.dtype)


def lif_gradient(
    membrane: Tensor,
    grad_spikes: Tensor,
    alpha: float | Tensor,
    *,
    threshold: float | Tensor = 1.0,
    reset: str = "subtract",
    reset_by: float | Tensor | None = None,
    decay_reset: bool = False,
    surrogate: Surrogate = DEFAULT_SURROGATE,
    method: str = "exodus",
    initial_membrane: float | Tensor | None = None,
    initial_spikes: float | Tensor | None = None,
    min_membrane: float | Tensor | None = None,
    bound_after_reset: bool = False,
    max_spikes: int = 1,
    reset_to: float | Tensor | None = None,
    detach_reset: bool = False,
    refractory: int = 0,
    time_dim: int = 1,
    grad_membrane: Tensor | None = None,
    wrt: Collection[str] | None = None,
) -> LifGradient | LifValueGradient:
    """Gradients of a LIF or IF neuron whose membrane is known (section 3 of docs/equations.md).

    Args:
        membrane: u, as `lif` returns it, shape (outer..., time, inner...), float32, float64, float16 or bfloat16.
        grad_spikes: g = dL/ds, with the shape and dtype of membrane.
        grad_membrane: h = dL/du by paths that do not pass through the spikes, likewise, or None.
        wrt: gradients to compute besides that of the input: names from alpha, threshold, reset_by (reset_to with reset
            "value"), initial_membrane. None means the arguments that are tensors.

    The other arguments are those of `lif`.

    Returns:
        LifGradient(input, alpha, threshold, reset_by, initial_membrane), or LifValueGradient with reset_to in place of
        reset_by: dL/dx with the shape and dtype of membrane; a parameter's gradient with its shape and dtype, 0-d if
        the parameter is a float; None if not asked for. If reset_by is None, the gradient of the threshold includes it.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong value or shape.
    """
    time_dim = check_trace(membrane, grad_spikes, grad_membrane, time_dim)
    options: LifOptions = {
        "threshold": threshold,
        "reset": reset,
        "reset_by": reset_by,
        "decay_reset": decay_reset,
        "surrogate": surrogate,
        "method": method,
        "initial_membrane": initial_membrane,
        "initial_spikes": initial_spikes,
        "min_membrane": min_membrane,
        "bound_after_reset": bound_after_reset,
        "max_spikes": max_spikes,
        "reset_to": reset_to,
        "detach_reset": detach_reset,
        "refractory": refractory,
        "time_dim": time_dim,
    }
    if arguments.is_coupled(**options):
        kind = LifValueGradient if reset == "value" else LifGradient
        grads = (grad_spikes, grad_membrane)
        return kind(**neurons_gradients(kind._fields, membrane, *grads, alpha, None, wrt, **options))
    settings, tensors = arguments.lif_arguments(membrane, alpha, **options)
    parameters = {"alpha": alpha, "threshold": threshold, "reset_by": reset_by, "initial_membrane": initial_membrane}
    wanted = wanted_names(wrt, LifGradient._fields, parameters)
    if method == "bptt":
        loop = reference.lif_on_trace
        return LifGradient(**bptt_gradients(loop, membrane, grad_spikes, grad_membrane, parameters, wanted, options))
    with torch.no_grad():
        grad_input, lanes = ops.lif_backward(
            membrane.contiguous(),
            grad_spikes.contiguous(),
            None if grad_membrane is None else grad_membrane.contiguous(),
            *settings.neuron,
            *tensors,
            *settings.rule,
            settings.surrogate,
            settings.slope,
            settings.scale,
            settings.method,
            bool(wanted),
            time_dim,
        )
        if not wanted:
            return LifGradient(grad_input)
        lanes = lanes.view(len(ops.LANE_GRADIENTS), *membrane.shape[:time_dim], *membrane.shape[time_dim + 1 :])
        by_name = dict(zip(ops.LANE_GRADIENTS, lanes, strict=True))
        by_name["threshold"] = threshold_gradient(lanes, tied=reset_by is None)
        return LifGradient(grad_input, **{name: _sum_to(by_name[name], parameters[name]) for name in wanted})


def srm_gradient(
    membrane: Tensor,
    grad_spikes: Tensor,
    reset_kernel: Kernel,
    *,
    threshold: float | Tensor = 1.0,
    surrogate: Surrogate = DEFAULT_SURROGATE,
    method: str = "exodus",
    time_dim: int = 1,
    grad_membrane: Tensor | None = None,
) -> SrmGradient:
    """delta = dL/dz of an SRM neuron whose membrane is known (section 3 of docs/equations.md, the transpose of (22)).

    Args:
        membrane: u, as `srm` returns it, shape (outer..., time, inner...), float32, float64, float16 or bfloat16.
        grad_spikes: g = dL/ds, with the shape and dtype of membrane.
        grad_membrane: h = dL/du by paths that do not pass through the spikes, likewise, or None.

    The other arguments are those of `srm`.

    Returns:
        SrmGradient(psp), with the shape and dtype of membrane.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong value or shape.
    """
    time_dim = check_trace(membrane, grad_spikes, grad_membrane, time_dim)
    settings, taps, thresholds = arguments.srm_arguments(membrane, reset_kernel, threshold, surrogate, method, time_dim)
    if method == "bptt":
        with torch.inference_mode(False), torch.enable_grad():
            psp, spikes, looped = reference.srm_on_trace(
                membrane,
                recordable(reset_kernel),
                threshold=recordable(threshold),
                surrogate=surrogate,
                time_dim=time_dim,
            )
            outputs, grads = [spikes], [grad_spikes.to(psp.dtype)]
            if grad_membrane is not None:
                outputs.append(looped)
                grads.append(grad_membrane.to(psp.dtype))
            (found,) = torch.autograd.grad(outputs, [psp], grads, materialize_grads=True)
        return SrmGradient(found.to(membrane.dtype))
    with torch.no_grad():
        grad_psp, _ = ops.srm_backward(
            membrane.contiguous(),
            grad_spikes.contiguous(),
            None if grad_membrane is None else grad_membrane.contiguous(),
            taps,
            *settings.modes,
            settings.threshold,
            thresholds,
            settings.surrogate,
            settings.slope,
            settings.scale,
            settings.method,
            False,
            time_dim,
        )
    return SrmGradient(grad_psp)
