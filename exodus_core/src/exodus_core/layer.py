"""A layer around its neurons: the synapses before them, the spikes of a known membrane, the output filter behind them.

Equations 4, 11, 13 and 14 of arXiv 2205.10242. With `lif_gradient` or `srm_gradient` between them, these functions give
the gradients of a whole layer from its membrane trace: `output_filter_adjoint` turns dL/dy into dL/ds,
`synapse_gradients` turns dL/dx into dL/dW and the dL/ds of the layer before.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from exodus_core import arguments, functional, ops
from exodus_core.errors import ArgumentError, ArgumentTypeError
from exodus_core.kernels import Kernel
from exodus_core.pieces.carried import without_piece
from exodus_core.sparse.product import linear, weight_gradient
from exodus_core.surrogate import DEFAULT_SURROGATE, Surrogate


class SynapseGradients(NamedTuple):
    """dL/d(argument) of `synapse_current`."""

    spikes: Tensor
    weight: Tensor


def _check_synapses(spikes: Tensor, weight: Tensor) -> None:
    for name, tensor in (("spikes", spikes), ("weight", weight)):
        if not isinstance(tensor, Tensor):
            raise ArgumentTypeError(name, "a torch.Tensor", type(tensor).__name__)
    if weight.dtype not in arguments.FLOATS:
        raise ArgumentTypeError("weight", "float32, float64, float16 or bfloat16", weight.dtype)
    if weight.dim() != 2:
        raise ArgumentError("weight", "of shape (N_out, N_in)", tuple(weight.shape))
    if spikes.dtype != weight.dtype:
        raise ArgumentTypeError("spikes", f"of the dtype of weight, {weight.dtype}", spikes.dtype)
    if spikes.dim() == 0 or spikes.shape[-1] != weight.shape[1]:
        raise ArgumentError("spikes", f"of shape (..., {weight.shape[1]})", tuple(spikes.shape))


def synapse_current(spikes: Tensor, weight: Tensor) -> Tensor:
    """The input current of the neurons behind some synapses, x = s W^T (5): `linear` without a bias.

    Args:
        spikes: s, shape (..., N_in), with the dtype of weight.
        weight: W, shape (N_out, N_in), float32, float64, float16 or bfloat16.

    Returns:
        x, shape (..., N_out).

    Raises:
        ArgumentTypeError: an argument has the wrong type or dtype.
        ArgumentError: an argument has the wrong shape.
    """
    _check_synapses(spikes, weight)
    return linear(spikes, weight)


def synapse_gradients(spikes: Tensor, weight: Tensor, grad_input: Tensor) -> SynapseGradients:
    """The gradients of `synapse_current` from lambda = dL/dx (14): dL/dW = sum of lambda s^T, dL/ds = W^T lambda.

    Args:
        spikes, weight: as of `synapse_current`.
        grad_input: lambda, shape (..., N_out), with the dtype of weight.

    Returns:
        SynapseGradients(spikes, weight), with the shapes and the dtype of both; the sum is over batch and time.

    Raises:
        ArgumentTypeError: an argument has the wrong type or dtype.
        ArgumentError: an argument has the wrong shape.
    """
    _check_synapses(spikes, weight)
    if not isinstance(grad_input, Tensor):
        raise ArgumentTypeError("grad_input", "a torch.Tensor", type(grad_input).__name__)
    if grad_input.dtype != weight.dtype:
        raise ArgumentTypeError("grad_input", f"of the dtype of weight, {weight.dtype}", grad_input.dtype)
    shape = (*spikes.shape[:-1], weight.shape[0])
    if grad_input.shape != shape:
        raise ArgumentError("grad_input", f"of shape {shape}", tuple(grad_input.shape))
    with torch.no_grad():
        return SynapseGradients(grad_input @ weight, weight_gradient(spikes, grad_input))


def fire(
    membrane: Tensor,
    threshold: float | Tensor = 1.0,
    *,
    max_spikes: int = 1,
    surrogate: Surrogate = DEFAULT_SURROGATE,
    time_dim: int = 1,
) -> Tensor:
    """The spikes of a known membrane (4): s = 1 where u >= threshold, or min(floor(u / threshold), max_spikes).

    They are those of a neuron that keeps nothing from one step to the next, `lif` with alpha = 0 and no reset.

    Args:
        membrane: u, shape (outer..., time, inner...), float32, float64, float16 or bfloat16.
        threshold, max_spikes, surrogate, time_dim: as in `lif`.

    Returns:
        s, with the shape and dtype of membrane. Differentiable, through the surrogate.

    Raises:
        ArgumentTypeError: an argument has the wrong type or dtype.
        ArgumentError: an argument has the wrong value or shape.
    """
    arguments.check_signal("membrane", membrane, time_dim)
    options = {"threshold": threshold, "max_spikes": max_spikes, "surrogate": surrogate, "time_dim": time_dim}
    with without_piece():
        return functional.lif(membrane, 0.0, reset="none", **options)[0]  # type: ignore[arg-type]


def output_filter_adjoint(grad_output: Tensor, kernel: Kernel, *, time_dim: int = 1) -> Tensor:
    """g = dL/ds of spikes that the loss sees filtered, from e = dL/d(eps * s): g[m] = sum of eps[k] e[m + k] (11, 13).

    Args:
        grad_output: e, shape (outer..., time, inner...), float32, float64, float16 or bfloat16.
        kernel: eps, as of `filter`: taps, shape (K,), or `ExponentialKernel`, `AlphaKernel`, `SlayerResponse`.
        time_dim: the axis of grad_output that is time.

    Returns:
        g, with the shape and dtype of grad_output.

    Raises:
        ArgumentTypeError: an argument has the wrong type or dtype.
        ArgumentError: an argument has the wrong value or shape.
    """
    time_dim = arguments.check_signal("grad_output", grad_output, time_dim)
    taps, *modes = arguments.kernel_arguments("kernel", kernel, grad_output)
    with torch.no_grad():
        return ops.filter(grad_output.contiguous(), taps, *modes, True, time_dim)
