"""Who is right: no contender is timed whose spikes or gradient are not those of the float64 loop."""

from __future__ import annotations

import torch
from torch import Tensor

from exodus_core import reference

from .contenders import Contender, Spikes
from .workloads import ALPHA, Workload

AGREEMENT = 1e-5  # of the largest value of the gradient
MARGIN = 1e-5  # between membrane and threshold: wide enough that no rounding of float32 decides a spike


def expected(contender: Contender, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, membrane and dL/dx of the neuron that the contender is, by autograd through the loop in float64."""
    leaf = x.double().requires_grad_()
    neuron = contender.neuron
    spikes, membrane = reference.lif(
        leaf, ALPHA, decay_reset=neuron.decay_reset, surrogate=neuron.surrogate, method=neuron.method
    )
    (gradient,) = torch.autograd.grad(spikes, leaf, g.double())
    return spikes.detach(), membrane.detach(), gradient


def _clear_inputs(contender: Contender, workload: Workload) -> tuple[Tensor, Tensor]:
    for seed in range(100):
        x, g = workload.slice().inputs(seed)
        _, membrane, _ = expected(contender, x, g)
        if (membrane - 1.0).abs().min() > MARGIN:
            return x, g
    raise ArithmeticError(f"no input of {workload.slice()} keeps its membrane {MARGIN} away from the threshold")


def fault(contender: Contender, spikes_of: Spikes, workload: Workload) -> str | None:
    """Error of the contender on a slice of the workload; None if it is right."""
    x, g = _clear_inputs(contender, workload)
    wanted_spikes, _, wanted = expected(contender, x, g)
    leaf = (contender.arrange(x) * contender.gain).requires_grad_()
    spikes = spikes_of(leaf)
    (gradient,) = torch.autograd.grad(spikes, leaf, contender.arrange(g))
    differing = int((contender.restore(spikes) != wanted_spikes).sum())
    if differing:
        return f"{differing} of {wanted_spikes.numel()} spikes differ"
    error = float((contender.restore(gradient) * contender.gain - wanted).abs().max() / wanted.abs().max())
    return None if error <= AGREEMENT else f"the gradient differs by {error:.1e} of its largest value"
