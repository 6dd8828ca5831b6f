"""Gradients from a membrane trace that already exists: no forward pass, no autograd graph."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exodus_core import arguments, ops, reference
from exodus_core.arguments import LifOptions
from exodus_core.autograd import threshold_gradient
from exodus_core.errors import ArgumentError
from exodus_core.kernels import Kernel
from exodus_core.surrogate import DEFAULT_SURROGATE, Surrogate


class LifGradient(NamedTuple):
    """dL/d(argument) of `lif`; None if it was not asked for."""

    input: Tensor
    alpha: Tensor | None
    threshold: Tensor | None
    reset_by: Tensor | None
    initial_membrane: Tensor | None


class SrmGradient(NamedTuple):
    """dL/d(argument) of `srm`."""

    psp: Tensor


_PARAMETERS = LifGradient._fields[1:]


def _wanted(wrt: Collection[str] | None, parameters: dict[str, float | Tensor | None]) -> set[str]:
    if wrt is None:
        return {name for name, value in parameters.items() if isinstance(value, Tensor)}
    wanted = {wrt} if isinstance(wrt, str) else set(wrt)
    unknown = wanted - set(LifGradient._fields)
    if unknown:
        raise ArgumentError("wrt", f"names of {', '.join(LifGradient._fields)}", ", ".join(sorted(unknown)))
    return wanted - {"input"}


def _sum_to(lanes: Tensor, parameter: float | Tensor | None) -> Tensor:
    """Sums a value per lane, (outer..., inner...), to the shape of the parameter, in float64; 0-d for a number."""
    if not isinstance(parameter, Tensor):
        return lanes.sum(dtype=torch.float64).to(lanes.dtype)
    if parameter.numel() == 1:
        return lanes.sum(dtype=torch.float64).reshape(parameter.shape).to(parameter.dtype)
    return lanes.double().sum_to_size(parameter.shape).to(parameter.dtype)


def _recordable(value: Any) -> Any:
    """A value that autograd may save: a copy of a tensor made in inference mode, anything else as it is."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _bptt(
    membrane: Tensor,
    grad_spikes: Tensor,
    grad_membrane: Tensor | None,
    parameters: dict[str, float | Tensor | None],
    wanted: set[str],
    options: LifOptions,
) -> LifGradient:
    """The gradients by autograd through the loop, pinned to the trace (section 6 of docs/equations.md)."""
    dtype = ops.compute_dtype(membrane.dtype)
    with torch.inference_mode(False), torch.enable_grad():
        leaves = {
            name: torch.as_tensor(0.0 if value is None else value, dtype=dtype, device=membrane.device)
            .detach()
            .clone()
            .requires_grad_()
            for name, value in parameters.items()
            if name in wanted
        }
        given: dict[str, Any] = {"alpha": parameters["alpha"], **options, "method": "bptt", **leaves}
        x, spikes, looped = reference.lif_on_trace(
            membrane, **{name: _recordable(value) for name, value in given.items()}
        )
        outputs, grads = [spikes], [grad_spikes.to(dtype)]
        if grad_membrane is not None:
            outputs.append(looped)
            grads.append(grad_membrane.to(dtype))
        found = torch.autograd.grad(outputs, [x, *leaves.values()], grads, allow_unused=True, materialize_grads=True)
    by_name: dict[str, Tensor] = dict(zip(leaves, found[1:], strict=True))
    for name, gradient in by_name.items():
        value = parameters[name]
        if isinstance(value, Tensor):
            by_name[name] = gradient.to(value.dtype)
    return LifGradient(found[0].to(membrane.dtype), *(by_name.get(name) for name in _PARAMETERS))


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
    max_spikes: int = 1,
    time_dim: int = 1,
    grad_membrane: Tensor | None = None,
    wrt: Collection[str] | None = None,
) -> LifGradient:
    """Gradients of a LIF or IF neuron whose membrane is known (section 3 of docs/equations.md).

    Args:
        membrane: u, as `lif` returns it, shape (outer..., time, inner...), float32, float64, float16 or bfloat16.
        grad_spikes: g = dL/ds, with the shape and dtype of membrane.
        grad_membrane: h = dL/du by paths that do not pass through the spikes, likewise, or None.
        wrt: gradients to compute besides that of the input: names from alpha, threshold, reset_by, initial_membrane.
            None means the arguments that are tensors.

    The other arguments are those of `lif`.

    Returns:
        LifGradient(input, alpha, threshold, reset_by, initial_membrane): dL/dx with the shape and dtype of membrane; a
        parameter's gradient with its shape and dtype, 0-d if the parameter is a float; None if not asked for. If
        reset_by is None, the gradient of the threshold includes it.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong value or shape.
    """
    time_dim = arguments.check_signal("membrane", membrane, time_dim)
    arguments.check_like("grad_spikes", grad_spikes, "membrane", membrane)
    if grad_membrane is not None:
        arguments.check_like("grad_membrane", grad_membrane, "membrane", membrane)
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
        "max_spikes": max_spikes,
        "time_dim": time_dim,
    }
    settings, tensors = arguments.lif_arguments(membrane, alpha, **options)
    parameters = {"alpha": alpha, "threshold": threshold, "reset_by": reset_by, "initial_membrane": initial_membrane}
    wanted = _wanted(wrt, parameters)
    if "reset_by" in wanted and reset_by is None:
        hint = "its gradient is part of the threshold's"
        raise ArgumentError("wrt", "names of parameters that are not None", "reset_by", hint)
    if method == "bptt":
        return _bptt(membrane, grad_spikes, grad_membrane, parameters, wanted, options)
    with torch.no_grad():
        grad_input, lanes = ops.lif_backward(
            membrane.contiguous(),
            grad_spikes.contiguous(),
            None if grad_membrane is None else grad_membrane.contiguous(),
            *settings.neuron,
            *tensors,
            settings.reset,
            settings.surrogate,
            settings.slope,
            settings.scale,
            settings.method,
            bool(wanted),
            time_dim,
        )
        if not wanted:
            return LifGradient(grad_input, None, None, None, None)
        lanes = lanes.view(len(ops.LANE_GRADIENTS), *membrane.shape[:time_dim], *membrane.shape[time_dim + 1 :])
        by_name = dict(zip(ops.LANE_GRADIENTS, lanes, strict=True))
        by_name["threshold"] = threshold_gradient(lanes, tied=reset_by is None)
        return LifGradient(
            grad_input, *(_sum_to(by_name[name], parameters[name]) if name in wanted else None for name in _PARAMETERS)
        )


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
    time_dim = arguments.check_signal("membrane", membrane, time_dim)
    arguments.check_like("grad_spikes", grad_spikes, "membrane", membrane)
    if grad_membrane is not None:
        arguments.check_like("grad_membrane", grad_membrane, "membrane", membrane)
    settings, taps, thresholds = arguments.srm_arguments(membrane, reset_kernel, threshold, surrogate, method, time_dim)
    if method == "bptt":
        with torch.inference_mode(False), torch.enable_grad():
            psp, spikes, looped = reference.srm_on_trace(
                membrane,
                _recordable(reset_kernel),
                threshold=_recordable(threshold),
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
