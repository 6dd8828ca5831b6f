"""How far back in time a gradient reaches (section 3.2.2 of the paper, (i)).

Of a LIF neuron chi[n, m] = du[n]/dx[m] is the product of n - m factors alpha - rho f'. As long as 0 <= rho f' <= 2
alpha each is at most alpha in magnitude: EXODUS's gradient fades at least as fast as alpha^(n - m), which is SLAYER's
whatever the neuron does. Beyond, the gradient may grow.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import exodus_core
from exodus_core.surrogate import Exponential

ALPHA, RHO = 0.98, 1.0
STEPS, NEURONS, LAGS = 300, 100, 100
#: Of the spikes that come in, one synapse of each sign, and their weight.
RATE, WEIGHT = 0.1, 0.6


@dataclass(frozen=True)
class Decay:
    """Magnitude of chi by lag.

    Attributes:
        scale: of the surrogate derivative.
        largest_derivative: of all neurons and steps.
        mean: average of abs(chi[m + lag, m]) over neurons and m, shape (LAGS + 1,).
        over_bound: largest abs(chi[m + lag, m]) / alpha^lag over neurons, m and lags.
        firing: share of steps with a spike.
    """

    scale: float
    largest_derivative: float
    mean: Tensor
    over_bound: float
    firing: float

    @property
    def half_life(self) -> int | None:
        """First lag at which the mean is at most a half; None if it never is."""
        below = (self.mean <= 0.5).nonzero()
        return int(below[0]) if len(below) else None


def bound() -> Tensor:
    """alpha^lag, shape (LAGS + 1,)."""
    return ALPHA ** torch.arange(LAGS + 1, dtype=torch.float64)


def measured(scale: float, seed: int) -> Decay:
    """chi of neurons that spikes of both signs drive, for a surrogate derivative of a scale."""
    generator = torch.Generator().manual_seed(seed)
    arrivals = torch.rand(2, 1, STEPS, NEURONS, dtype=torch.float64, generator=generator) < RATE
    x = WEIGHT * (1.5 * arrivals[0].double() - arrivals[1].double())
    surrogate = Exponential(slope=1.0, scale=scale)
    spikes, membrane = exodus_core.lif(x, ALPHA, reset_by=RHO, surrogate=surrogate)
    derivative = surrogate.derivative(membrane[0] - 1.0)
    factors = ALPHA - RHO * derivative
    starts = STEPS - LAGS
    chi = torch.ones(starts, NEURONS, dtype=torch.float64)
    mean, over = [1.0], 1.0
    for lag in range(1, LAGS + 1):
        chi = chi * factors[lag - 1 : lag - 1 + starts]
        mean.append(chi.abs().mean().item())
        over = max(over, chi.abs().max().item() / ALPHA**lag)
    return Decay(scale, derivative.max().item(), torch.tensor(mean, dtype=torch.float64), over, spikes.mean().item())
