"""The functions of sinabs-exodus' compiled module `exodus_cuda`, computed by exodus_core on the CPU.

With this folder on sys.path the Python of sinabs-exodus runs without a GPU, on exodus_core's operators. Names, order of
arguments and what is written in place are those of its `cuda/bindings.cu`. Rows are neurons, columns time steps.

The backward functions are given surrogate derivatives in place of a membrane. exodus_core computes the derivatives from
a membrane, so they are coded as one on which a triangle has them: `_Trace`.

`lifBackwardAlpha` is the exact gradient. The kernel of sinabs-exodus leaves out that a membrane clipped at the first
step does not depend on what was before it, so the two differ where that happens.
"""

# ruff: noqa: N802

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import exodus_core
from exodus_core.arguments import LARGEST
from exodus_core.surrogate import Triangle


def _check(**tensors: Tensor) -> None:
    """What the bindings refuse, except for the device."""
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise RuntimeError(f"{name} must be float32, got {tensor.dtype}")
        if not tensor.is_contiguous():
            raise RuntimeError(f"{name} must be contiguous, got strides {tensor.stride()}")


def _time_first(*rows: Tensor) -> tuple[Tensor, ...]:
    """(neurons, time) in float32 as (time, neurons) in float64: exodus_core has a parameter of each inner index."""
    return tuple(row.double().t().contiguous() for row in rows)


def _rows(columns: Tensor) -> Tensor:
    return columns.t().contiguous().float()


class _Trace(NamedTuple):
    """A membrane on which `surrogate` has given derivatives, and which lies below `floor` where it was clipped.

    On its right flank a triangle of slope 1 has every derivative up to its scale: f'(u) = scale (1 - (u - threshold)).
    At a scale of twice the largest derivative the right flank ends half a unit above the threshold, so that the left
    one is free for the clipped steps, whose derivatives nothing depends on.
    """

    membrane: Tensor
    surrogate: Triangle
    floor: float = 0.0
    threshold: float = 0.0

    @classmethod
    def of(cls, derivatives: Tensor, not_clipped: Tensor | None = None) -> _Trace:
        if (derivatives < 0).any():
            raise ValueError(f"surr must be non-negative, got {float(derivatives.min())}")
        largest = float(derivatives.max()) if derivatives.numel() else 0.0
        scale = 2 * largest if largest > 0 else 1.0
        membrane = 1 - derivatives / scale
        if not_clipped is not None:
            if not ((not_clipped == 0) | (not_clipped == 1)).all():
                raise ValueError("notClipped must be 0 or 1 everywhere, got other values")
            membrane = torch.where(not_clipped == 1, membrane, -membrane)
        return cls(membrane, Triangle(slope=1.0, scale=scale))


def lifForward(
    output_spikes: Tensor,
    vmem: Tensor,
    input: Tensor,
    vmem_post_initial: Tensor,
    alpha: Tensor,
    membr_subtract: Tensor,
    theta: Tensor,
    theta_low: Tensor,
    apply_theta_low: bool,
    max_num_spikes: int,
) -> None:
    """u[t] = alpha (u[t-1] - subtract s[t-1]) + x[t], not below theta_low; writes spikes and u."""
    _check(outputSpikes=output_spikes, vmem=vmem, input=input, vmemPostInitial=vmem_post_initial, alpha=alpha)
    _check(membrSubtract=membr_subtract, theta=theta, thetaLow=theta_low)
    spikes, membrane = exodus_core.lif(
        input.t().contiguous(),  # in float32: what fires is decided as it was
        alpha.detach(),
        threshold=theta.detach(),
        reset="subtract",
        reset_by=membr_subtract.detach(),
        decay_reset=True,
        initial_membrane=vmem_post_initial.detach(),
        min_membrane=theta_low.detach() if apply_theta_low else None,
        max_spikes=LARGEST if max_num_spikes < 0 else max_num_spikes,
        time_dim=0,
    )
    output_spikes.copy_(spikes.t())
    vmem.copy_(membrane.t())


def _lif_adjoint(
    surr: Tensor, output_grad: Tensor, not_clipped: Tensor, alpha: Tensor, subtract: Tensor, *, decay_reset: bool
) -> Tensor:
    """dL/dx, time first, where output_grad is dL/du by paths that do not pass through a later membrane."""
    derivatives, direct, kept = _time_first(surr, output_grad, not_clipped)
    trace = _Trace.of(derivatives, kept)
    return exodus_core.lif_gradient(
        trace.membrane,
        torch.zeros_like(trace.membrane),
        alpha.double(),
        threshold=trace.threshold,
        reset="subtract",
        reset_by=subtract.double(),
        decay_reset=decay_reset,
        surrogate=trace.surrogate,
        min_membrane=trace.floor,
        grad_membrane=direct,
        time_dim=0,
        wrt=(),
    ).input


def lifBackward(
    surr: Tensor, output_grad: Tensor, not_clipped: Tensor, alpha: Tensor, membr_subtract: Tensor
) -> Tensor:
    """dL/dx of a neuron whose reset is not decayed: lam[t] = clip[t] (h[t] + (alpha - subtract f'[t]) lam[t+1])."""
    _check(surr=surr, outputGrad=output_grad, notClipped=not_clipped, alpha=alpha, membrSubtract=membr_subtract)
    return _rows(_lif_adjoint(surr, output_grad, not_clipped, alpha, membr_subtract, decay_reset=False))


def lifBackwardAlpha(
    surr: Tensor,
    output_grad: Tensor,
    vmem_post: Tensor,
    vmem_post_initial: Tensor,
    not_clipped: Tensor,
    alpha: Tensor,
    membr_subtract: Tensor,
) -> Tensor:
    """dL/dalpha of a neuron whose reset is decayed: the sum over t of lam[t] times the membrane after reset at t-1."""
    _check(surr=surr, outputGrad=output_grad, vmemPost=vmem_post, vmemPostInitial=vmem_post_initial)
    _check(notClipped=not_clipped, alpha=alpha, membrSubtract=membr_subtract)
    adjoint = _lif_adjoint(surr, output_grad, not_clipped, alpha, membr_subtract, decay_reset=True)
    (after_reset,) = _time_first(vmem_post)
    before = torch.cat([vmem_post_initial.double()[None], after_reset[:-1]])
    return (adjoint * before).sum(0).float()


def leakyForward(input: Tensor, vmem_initial: Tensor, alpha: Tensor) -> Tensor:
    """v[t] = alpha v[t-1] + x[t]."""
    _check(input=input, vmemInitial=vmem_initial, alpha=alpha)
    options = {"reset": "none", "initial_membrane": vmem_initial.detach(), "time_dim": 0}
    return exodus_core.lif(input.detach().t().contiguous(), alpha.detach(), **options)[1].t().contiguous()


def leakyBackward(output_grad: Tensor, alpha: Tensor) -> Tensor:
    """dL/dx of `leakyForward`."""
    _check(outputGrad=output_grad, alpha=alpha)
    (direct,) = _time_first(output_grad)
    nothing = torch.zeros_like(direct)
    options = {"reset": "none", "grad_membrane": direct, "time_dim": 0, "wrt": ()}
    return _rows(exodus_core.lif_gradient(nothing, nothing, alpha.double(), **options).input)


def leakyBackwardAlpha(output_grad: Tensor, output: Tensor, vmem_initial: Tensor, alpha: Tensor) -> Tensor:
    """dL/dalpha of `leakyForward`."""
    _check(outputGrad=output_grad, output=output, vmemInitial=vmem_initial, alpha=alpha)
    direct, membrane = _time_first(output_grad, output)
    found = exodus_core.lif_gradient(
        membrane,
        torch.zeros_like(membrane),
        alpha.double(),
        reset="none",
        initial_membrane=vmem_initial.double(),
        grad_membrane=direct,
        time_dim=0,
        wrt=("alpha",),
    )
    return found.alpha.float()


def spikeForward(
    u: Tensor,
    alpha: float,
    membr_subtract: float,
    theta: float,
    theta_low: float,
    apply_theta_low: bool,
    max_num_spikes: int,
) -> Tensor:
    """Spikes of membranes without their reset, which is subtracted from u in place.

    What is added to a membrane below theta_low decays as the reset does, from the next step on: in u the step itself
    stays below.
    """
    _check(u=u)
    (free,) = _time_first(u)
    current = torch.cat([free[:1], free[1:] - alpha * free[:-1]])
    spikes, membrane = exodus_core.lif(
        current,
        alpha,
        threshold=theta,
        reset="subtract",
        reset_by=membr_subtract,
        decay_reset=True,
        min_membrane=theta_low if apply_theta_low else None,
        max_spikes=LARGEST if max_num_spikes < 0 else max_num_spikes,
        time_dim=0,
    )
    current[1:] += alpha * (membrane - membr_subtract * spikes)[:-1]
    u.copy_(current.t())
    return _rows(spikes)


def _srm_adjoint(surr: Tensor, output_grad: Tensor, reset_kernel: Tensor | exodus_core.ExponentialKernel) -> Tensor:
    derivatives, direct = _time_first(surr, output_grad)
    trace = _Trace.of(derivatives)
    options = {"threshold": trace.threshold, "surrogate": trace.surrogate, "time_dim": 0}
    return _rows(exodus_core.srm_gradient(trace.membrane, direct, reset_kernel, **options).psp)


def spikeBackward(
    surr: Tensor, output_grad: Tensor, not_clipped: Tensor, alpha: float, membr_subtract: float
) -> Tensor:
    """dL/du of spikes whose reset kernel is -subtract alpha^k; a clipped step has the derivative 0."""
    _check(surr=surr, outputGrad=output_grad, notClipped=not_clipped)
    return _srm_adjoint(
        surr * not_clipped, output_grad, exodus_core.ExponentialKernel(alpha, amplitude=-membr_subtract)
    )


def spikeBackwardRefr(surr: Tensor, output_grad: Tensor, refr: Tensor) -> Tensor:
    """dL/du of spikes with a refractory kernel, whose first tap stands for the step of the spike and is not used."""
    _check(surr=surr, outputGrad=output_grad, refr=refr)
    taps = refr[1:].double() if refr.numel() > 1 else torch.zeros(1, dtype=torch.float64)
    return _srm_adjoint(surr, output_grad, taps)
