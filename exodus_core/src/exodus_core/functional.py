"""The differentiable functions: lif, srm, filter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from exodus_core import arguments, coupled, ops, reference
from exodus_core.arguments import LifOptions, LifSettings, LifTensors, NeuronOptions
from exodus_core.autograd import Filter, Lif, LifWithLast, PackedLif, Srm, is_differentiated
from exodus_core.errors import ArgumentError
from exodus_core.kernels import Kernel
from exodus_core.pieces.carried import refuse_in_pieces
from exodus_core.sparse.spikes import PackedSpikes, watched
from exodus_core.surrogate import DEFAULT_SURROGATE, Surrogate

# Neurons of a sample from which on the CPU's kernels write bits: the lanes of its widest vector.
_PACKED_NEURONS = 16


def lif(
    x: Tensor,
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
) -> tuple[Tensor, Tensor]:
    """Leaky integrate-and-fire neurons (integrate-and-fire: alpha = 1), differentiable in every float tensor argument.

    With reset "subtract" (equations 3 and 26 of arXiv 2205.10242)::

        u[t] = alpha u[t-1] + x[t] - reset_by s[t-1]            decay_reset=False
        u[t] = alpha (u[t-1] - reset_by s[t-1]) + x[t]          decay_reset=True

    with "zero" u[t] = alpha u[t-1] (1 - s[t-1]) + x[t], with "value" the membrane is reset to reset_to instead of 0,
    u[t] = alpha (u[t-1] (1 - s[t-1]) + reset_to s[t-1]) + x[t], with "none" u[t] = alpha u[t-1] + x[t]; then u[t] is
    raised to min_membrane and s[t] = 1 where u[t] >= threshold, or min(floor(u[t] / threshold), max_spikes).

    Args:
        x: weighted input current, shape (outer..., time, inner...), float32, float64, float16 or bfloat16 (the last two
            are computed in float32). A contiguous tensor is not copied, whatever time_dim is.
        alpha: decay of the membrane per step, exp(-dt/tau), in [0, 1].
        threshold: theta, in units of the membrane; positive if max_spikes > 1. At 0 or below, neurons fire at
            rest and a reset by the threshold raises them: defined, but not what networks as data take.
        reset: "subtract", "zero", "value" or "none".
        reset_by: what a spike subtracts; None means threshold, and then the gradient of the threshold includes it.
        decay_reset: apply the reset before the decay.
        surrogate: f', the derivative of the spikes with respect to the membrane; see `exodus_core.surrogate`.
        method: how gradients are computed. "exodus": exact, one pass backward in time. "slayer": the same without the
            reset. "bptt": autograd through a loop over time.
        initial_membrane: u[-1], before the reset that initial_spikes causes; None means 0. A float, or a tensor that
            broadcasts to the shape of x without time.
        initial_spikes: s[-1], likewise. With the last membrane and spikes of one call as the initial ones of the next,
            a sequence in pieces gives the gradients of the whole. A membrane of float16 or bfloat16 has been rounded:
            there compute in float32, as `exodus_core.nn` does with stateful=True.
        min_membrane: lower bound of the membrane, or None. It is rounded to the dtype of x.
        bound_after_reset: bound not u[t] but what its reset leaves to the next step, as sinabs does: u[t-1] after the
            reset, before it decays, or alpha u[t-1] - reset_by s[t-1] where the reset is after the decay. No gradient
            passes from the next step where that is clipped. Not with reset "value", refractory steps, or a detached
            reset to zero.
        max_spikes: most spikes in one step.
        reset_to: the value that a spike sets the membrane to with reset "value".
        detach_reset: no gradient passes through the spikes to the reset, as in libraries that detach them. Where a
            spike subtracts, that is what SLAYER computes; with "zero" and "value" the factor 1 - s[t-1] stays.
        refractory: steps after a spike in which the membrane keeps the value that it has after the reset, whatever the
            input, and no spike is fired.
        time_dim: the axis of x that is time.

    alpha, threshold, reset_by and min_membrane are floats, or tensors that broadcast over the inner dimensions. Numbers
    of NumPy are numbers. Of tensors on the CPU that need no gradient, the values are checked as those of floats are;
    of others they are not, which would wait for the device or stop a training.

    Returns:
        (spikes, membrane), both with the shape and dtype of x; membrane is u before the reset that its spikes cause.

    Raises:
        TypeError: an argument has the wrong type or dtype, or is a tensor without strides (sparse, nested).
        ValueError: an argument has the wrong value or shape.
    """
    refuse_in_pieces("exodus_core.lif", "use a layer of exodus_core.nn")
    time_dim = arguments.check_signal("x", x, time_dim)
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
        return coupled.neurons(x, alpha, **options)[:2]
    settings, tensors = arguments.lif_arguments(x, alpha, **options)
    if method == "bptt":
        return reference.lif(x, alpha, **options)
    if is_differentiated(x, *tensors):
        spikes, membrane = Lif.apply(x, *_untied(settings, tensors), settings)  # type: ignore[no-untyped-call]
    else:
        x = ops.contiguous_or_constant(x, time_dim)
        spikes, membrane = ops.lif_forward(x, *settings.neuron, *tensors, *settings.rule, time_dim)
    return spikes, membrane


def _untied(settings: LifSettings, tensors: LifTensors) -> Sequence[Tensor | None]:
    """The tensors as the autograd functions take them."""
    alphas, thresholds, resets_by, *others = tensors
    return alphas, thresholds, None if settings.tied else resets_by, *others


def lif_with_last(
    x: Tensor, alpha: float | Tensor, *, one_step: Tensor | None = None, **options: Unpack[LifOptions]
) -> tuple[Tensor, ...]:
    """Spikes and membrane of `lif`, and copies of the membrane and the spikes of the last step.

    There is at least one step. The result is that of `lif` and `Tensor.select`; gradients take less time and memory.

    Args:
        x, alpha, options: as of `lif`.
        one_step: the tensor with one step that x is expanded from. It then takes the gradient, summed over time while
            that is computed, and x has none.
    """
    time_dim = arguments.check_signal("x", x, options["time_dim"])
    options["time_dim"] = time_dim
    if arguments.is_coupled(**options):
        raise ArgumentError("options", "of neurons whose state is their membrane and spikes", ", ".join(options))
    settings, tensors = arguments.lif_arguments(x, alpha, **options)
    if options.get("method") != "bptt" and is_differentiated(x, *tensors):
        if one_step is not None and ops.may_be_cached(one_step):
            settings = settings._replace(steps=x.shape[time_dim])
            x = one_step
        found: tuple[Tensor, ...] = LifWithLast.apply(x, *_untied(settings, tensors), settings)  # type: ignore[no-untyped-call]
        return found
    spikes, membrane = lif(x, alpha, **options)
    return spikes, membrane, membrane.select(time_dim, -1).clone(), spikes.select(time_dim, -1).clone()


def lif_packed(x: Tensor, alpha: float | Tensor, **options: Unpack[NeuronOptions]) -> Tensor | PackedSpikes:
    """The spikes of `lif`, for a product to read: as bits if the kernel can write them, else as a tensor.

    The kernels of the CPU write bits of at least 16 neurons, at most one spike a step. The axis of time is 1.

    Args:
        x, alpha, options: as of `lif`.

    Raises:
        TypeError, ValueError: as of `lif`.
    """
    arguments.check_signal("x", x, 1)
    packs = (
        x.device.type == "cpu"
        and ops.HAS_BITS
        and math.prod(x.shape[2:]) >= _PACKED_NEURONS
        and options.get("max_spikes", 1) == 1
        and options.get("method") != "bptt"
        and not arguments.is_coupled(**options)
        and not torch.compiler.is_compiling()
        and not watched()
    )
    if not packs:
        return lif(x, alpha, **options)[0]
    settings, tensors = arguments.lif_arguments(x, alpha, time_dim=1, **options)
    graph = None
    if is_differentiated(x, *tensors):
        graph, bits = PackedLif.apply(x, *_untied(settings, tensors)[:4], settings)  # type: ignore[no-untyped-call]
    else:
        x = ops.contiguous_or_constant(x, 1)
        bits, _ = ops.lif_forward_packed(x, *settings.neuron[:4], *tensors, *settings.rule, 1)
    return PackedSpikes(bits.flatten(0, 1), x.shape, x.dim() - 2, graph)


def srm(
    z: Tensor,
    reset_kernel: Kernel,
    *,
    threshold: float | Tensor = 1.0,
    surrogate: Surrogate = DEFAULT_SURROGATE,
    method: str = "exodus",
    time_dim: int = 1,
) -> tuple[Tensor, Tensor]:
    """Spike-response neurons with any causal reset kernel (equations 5 to 8 of arXiv 2205.10242).

    u[n] = z[n] + sum over j >= 0 of reset_kernel[j] s[n-1-j], s[n] = 1 where u[n] >= threshold. Differentiable in z,
    threshold and the taps.

    Args:
        z: the weighted input filtered by the spike response kernel (`filter`), shape (outer..., time, inner...),
            float32, float64, float16 or bfloat16.
        reset_kernel: nu: taps, shape (K,), in O(T K); or `ExponentialKernel`, `AlphaKernel`, `SlayerRefractory`, in
            O(T). Usually negative.
        threshold: a float, or a tensor that broadcasts over the inner dimensions.
        surrogate, method, time_dim: as in `lif`.

    Returns:
        (spikes, membrane), both with the shape and dtype of z.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong value or shape.
    """
    refuse_in_pieces("exodus_core.srm", "its state is the history of its spikes: leave it out")
    time_dim = arguments.check_signal("z", z, time_dim)
    settings, taps, thresholds = arguments.srm_arguments(z, reset_kernel, threshold, surrogate, method, time_dim)
    if method == "bptt":
        return reference.srm(z, reset_kernel, threshold=threshold, surrogate=surrogate, time_dim=time_dim)
    z = z.contiguous()
    if is_differentiated(z, taps, thresholds):
        spikes, membrane = Srm.apply(z, taps, thresholds, settings)  # type: ignore[no-untyped-call]
    else:
        spikes, membrane = ops.srm_forward(z, taps, *settings.modes, settings.threshold, thresholds, time_dim)
    return spikes, membrane


def filter(x: Tensor, kernel: Kernel, *, time_dim: int = 1) -> Tensor:
    """Causal filter in time (equation 5): y[n] = sum over k >= 0 of kernel[k] x[n-k]. Differentiable in x and the taps.

    Args:
        x: shape (outer..., time, inner...), float32, float64, float16 or bfloat16.
        kernel: taps, shape (K,), in O(T K); or `ExponentialKernel`, `AlphaKernel`, `SlayerResponse`, in O(T): their
            constants and their state are float64, whatever the dtype of x.
        time_dim: the axis of x that is time.

    Returns:
        y, with the shape and dtype of x.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong value or shape.
    """
    refuse_in_pieces("exodus_core.filter", "its state is the history of its input: leave it out")
    time_dim = arguments.check_signal("x", x, time_dim)
    taps, *modes = arguments.kernel_arguments("kernel", kernel, x)
    x = x.contiguous()
    if is_differentiated(x, taps):
        filtered: Tensor = Filter.apply(x, taps, tuple(modes), time_dim)  # type: ignore[no-untyped-call]
        return filtered
    return ops.filter(x, taps, *modes, False, time_dim)
