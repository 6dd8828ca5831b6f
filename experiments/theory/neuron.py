"""Random SRM and LIF neurons in float64 that fire now and then, for the checks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import exodus_core
from exodus_core import AlphaKernel, ExponentialKernel
from exodus_core.surrogate import Exponential, Surrogate

ResetKernel = ExponentialKernel | AlphaKernel
SURROGATE = Exponential(slope=1.0)
THRESHOLD = 1.0


@dataclass(frozen=True)
class Trace:
    """One neuron over time, and a gradient that comes in.

    Attributes:
        z: input filtered by the response kernel, shape (T,), float64.
        membrane, spikes: u and s, shape (T,).
        derivative: f'(u - threshold), shape (T,).
        grad_spikes: g = dL/ds, shape (T,).
    """

    z: Tensor
    membrane: Tensor
    spikes: Tensor
    derivative: Tensor
    grad_spikes: Tensor


def traced(kernel: ResetKernel, steps: int, seed: int, surrogate: Surrogate = SURROGATE) -> Trace:
    """A neuron with a reset kernel and random input."""
    generator = torch.Generator().manual_seed(seed)
    z, g = torch.randn(2, steps, dtype=torch.float64, generator=generator)
    spikes, membrane = exodus_core.srm(z[None, :, None], kernel, threshold=THRESHOLD, surrogate=surrogate)
    u = membrane[0, :, 0]
    return Trace(z, u, spikes[0, :, 0], surrogate.derivative(u - THRESHOLD), g)


def along_time(values: Tensor) -> Tensor:
    """Shape (T,) as the (batch, time, neurons) of the operators."""
    return values[None, :, None]
